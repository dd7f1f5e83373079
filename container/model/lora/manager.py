"""The LoRA manager: registers, loads and evicts adapters; implements the engine's Adapters.

At most SAGEMAKER_MAX_NUMBER_OF_ADAPTERS_IN_MEMORY adapters are loaded; for one more, the least
recently used one that no request uses is evicted. Adapters registered while the server runs are
also recorded in a file, for the engine that restarts after a crash.
"""

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from container.engine.adapters import NO_ADAPTER
from container.errors import (
    Conflict,
    InvalidParameter,
    ModelLoadError,
    NotFound,
    Overloaded,
    ServingError,
)
from container.messages.engine import AdapterInfo
from container.model.lora.checkpoint import CONFIG, Weights, read_config, read_weights
from container.model.lora.layers import LoraLayers
from container.settings.model import ModelSettings
from container.settings.process_env import ADAPTER_RECORD, ADDITIONAL_DATA

log = logging.getLogger(__name__)

MAX_NAME = 256


@dataclass(frozen=True, slots=True)
class _Known:
    number: int
    source: str
    folder: Path
    pin: bool


class LoraManager:
    """Owns the registered and loaded adapters of one engine."""

    def __init__(
        self,
        lora_layers: LoraLayers,
        max_in_memory: int,
        record: Path | None = None,
        download: Callable[[str], str] = snapshot_download,
    ) -> None:
        self._lora_layers = lora_layers
        self._shapes = lora_layers.shapes
        self._max_in_memory = max_in_memory
        self._record = record
        self._download = download
        self._known: dict[str, _Known] = {}
        self._loaded: OrderedDict[int, Weights] = OrderedDict()  # least recently used first
        self._users: dict[int, int] = {}
        self._next_number = NO_ADAPTER + 1
        self._is_recording = False

    def acquire(self, name: str) -> int:
        """Load an adapter if necessary and add one reference. Raises NotFound or Overloaded."""
        known = self._find(name)
        self._load(known)
        self._users[known.number] = self._users.get(known.number, 0) + 1
        return known.number

    def release(self, number: int) -> None:
        """Drop one reference to an adapter."""
        self._users[number] -= 1
        if self._users[number]:
            return
        del self._users[number]
        if number not in {known.number for known in self._known.values()}:
            self._unload(number)

    def add(self, name: str, source: str, *, preload: bool = True, pin: bool = False) -> None:
        """Register an adapter. Raises Conflict or InvalidParameter."""
        if not name or len(name) > MAX_NAME:
            raise InvalidParameter(f"`name` must have 1 to {MAX_NAME} characters", field="name")
        if name in self._known:
            raise Conflict(f"adapter {name!r} is registered already", field="name")
        folder = self._folder(source)
        known = _Known(self._next_number, source, folder, pin)
        weights = read_weights(folder, self._shapes)  # validate it even if it is not loaded now
        self._next_number += 1
        self._known[name] = known
        if preload or pin:
            try:
                self._load(known, weights)
            except Overloaded:
                if pin:
                    del self._known[name]
                    raise
                log.info("adapter %s: no free slot, loading it on first use", name)
        log.info("adapter %s registered from %s", name, folder)
        self._write_record()

    def remove(self, name: str) -> None:
        """Unregister an adapter; running requests finish with it. Raises NotFound."""
        number = self._find(name).number
        del self._known[name]
        if number not in self._users:
            self._unload(number)
        log.info("adapter %s unregistered", name)
        self._write_record()

    def infos(self) -> list[AdapterInfo]:
        """All registered adapters, in registration order."""
        return [
            AdapterInfo(name, known.source, known.number in self._loaded, known.pin)
            for name, known in self._known.items()
        ]

    def start_recording(self) -> None:
        """Register the adapters that a previous engine recorded, and record from now on."""
        if self._record is not None and self._record.is_file():
            for name, source, pin in json.loads(self._record.read_text()):
                if name not in self._known:
                    self.add(name, source, preload=pin, pin=pin)
        self._is_recording = True

    def _find(self, name: str) -> _Known:
        known = self._known.get(name)
        if known is None:
            names = ", ".join(self._known) or "none"
            raise NotFound(f"adapter {name!r} is not known; known are: {names}", field="adapter")
        return known

    def _load(self, known: _Known, weights: Weights | None = None) -> None:
        if known.number in self._loaded:
            self._loaded.move_to_end(known.number)
            return
        pinned = {entry.number for entry in self._known.values() if entry.pin}
        while len(self._loaded) >= self._max_in_memory:
            idle = [
                number
                for number in self._loaded
                if number not in self._users and number not in pinned
            ]
            if not idle:
                raise Overloaded(
                    f"all {self._max_in_memory} adapters in memory are in use "
                    "(SAGEMAKER_MAX_NUMBER_OF_ADAPTERS_IN_MEMORY)",
                    retry_after_s=1,
                )
            del self._loaded[idle[0]]
        self._loaded[known.number] = weights or read_weights(known.folder, self._shapes)
        self._lora_layers.set_adapters(self._loaded)

    def _unload(self, number: int) -> None:
        if self._loaded.pop(number, None) is not None:
            self._lora_layers.set_adapters(self._loaded)

    def _folder(self, source: str) -> Path:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            if not source or folder.is_absolute() or source.count("/") != 1:
                raise InvalidParameter(
                    f"`src`: there is no folder {source!r}, and it is not a Hub id (owner/name)",
                    field="src",
                )
            name, _, revision = source.partition("@")
            try:
                folder = Path(self._download(name, **({"revision": revision} if revision else {})))
            except Exception as error:  # the Hub's client can raise many errors
                raise InvalidParameter(
                    f"`src`: {source} is no folder and cannot be downloaded: {error}", field="src"
                ) from error
        inner = [path.parent for path in folder.glob(f"*/{CONFIG}")]
        if not (folder / CONFIG).is_file() and len(inner) == 1:
            folder = inner[0]
        read_config(folder)
        return folder

    def _write_record(self) -> None:
        if self._record is not None and self._is_recording:
            records = [(name, known.source, known.pin) for name, known in self._known.items()]
            self._record.write_text(json.dumps(records))


def open_store(
    settings: ModelSettings, lora_layers: LoraLayers, progress: Callable[[str], None]
) -> LoraManager:
    """Create the manager with the adapters of the settings. Raises ModelLoadError."""
    record = os.environ.get(ADAPTER_RECORD)
    store = LoraManager(
        lora_layers, settings.max_adapters_in_memory, Path(record) if record else None
    )
    for name, source in named_at_start(settings.lora_adapters).items():
        progress(f"loading adapter {name}")
        try:
            store.add(name, source)
        except ServingError as error:
            raise ModelLoadError(f"adapter {name}: {error.message}") from error
    store.start_recording()
    return store


def named_at_start(lora_adapters: str | None) -> dict[str, str]:
    """Return the sources of the adapters to load at start, by name.

    They come from TGI's LORA_ADAPTERS (`name=path`, or a path or Hub id alone) and from
    SageMaker's additional model data.
    """
    sources = {}
    if ADDITIONAL_DATA.is_dir():
        for channel in sorted(ADDITIONAL_DATA.iterdir()):
            if (channel / CONFIG).is_file():
                sources[channel.name] = str(channel)
    for entry in (lora_adapters or "").split(","):
        name, _, source = entry.strip().partition("=")
        if name:
            sources[name] = source or name
    return sources
