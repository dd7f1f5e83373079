"""Which adapters are known and which are in memory; implements the engine's Adapters.

As many as SAGEMAKER_MAX_NUMBER_OF_ADAPTERS_IN_MEMORY are in memory; for one more, the one that was
used longest ago and that no request uses makes room. What was added while the server ran is also
kept in a file, for the engine that takes over after a crash.
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
    """Owns the adapters of one engine."""

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
        """Have an adapter in memory. Raises NotFound or Overloaded."""
        known = self._find(name)
        self._load(known)
        self._users[known.number] = self._users.get(known.number, 0) + 1
        return known.number

    def release(self, number: int) -> None:
        """Say that one request less uses it."""
        self._users[number] -= 1
        if self._users[number]:
            return
        del self._users[number]
        if number not in {known.number for known in self._known.values()}:
            self._unload(number)

    def add(self, name: str, source: str, *, preload: bool = True, pin: bool = False) -> None:
        """Make an adapter known. Raises Conflict or InvalidParameter."""
        if not name or len(name) > MAX_NAME:
            raise InvalidParameter(f"`name` must have 1 to {MAX_NAME} characters", field="name")
        if name in self._known:
            raise Conflict(f"adapter {name!r} is registered already", field="name")
        folder = self._folder(source)
        known = _Known(self._next_number, source, folder, pin)
        weights = read_weights(folder, self._shapes)  # it must be usable, even if it is not kept
        self._next_number += 1
        self._known[name] = known
        if preload or pin:
            try:
                self._load(known, weights)
            except Overloaded:
                if pin:
                    del self._known[name]
                    raise
                log.info("adapter %s is loaded when it is first used", name)
        log.info("adapter %s registered from %s", name, folder)
        self._write_record()

    def remove(self, name: str) -> None:
        """Forget it; running requests finish with it. Raises NotFound."""
        number = self._find(name).number
        del self._known[name]
        if number not in self._users:
            self._unload(number)
        log.info("adapter %s unregistered", name)
        self._write_record()

    def infos(self) -> list[AdapterInfo]:
        """All known adapters."""
        return [
            AdapterInfo(name, known.source, known.number in self._loaded, known.pin)
            for name, known in self._known.items()
        ]

    def start_recording(self) -> None:
        """Take over what an engine before this one was given, and keep what comes from now on."""
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
                raise InvalidParameter(f"`src`: there is no folder {source!r}", field="src")
            name, _, revision = source.partition("@")
            try:
                folder = Path(self._download(name, **({"revision": revision} if revision else {})))
            except Exception as error:  # the Hub fails in many ways
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
    """Make the store with the adapters that are named at start. Raises ModelLoadError."""
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
    """TGI's LORA_ADAPTERS (`name=path`, or a path or Hub id alone), and additional model data."""
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
