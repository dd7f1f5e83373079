"""The LoRA manager: registers adapters by name and loads them; implements the engine's Adapters.

Downloads and reading run in other threads; `poll`, between steps, takes their results. Adapters
registered while the server runs are also recorded in a file, for the engine that restarts after a
crash.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from container.background import run_in_background
from container.engine.adapters import NO_ADAPTER
from container.errors import (
    Conflict,
    InternalError,
    InvalidParameter,
    ModelLoadError,
    NotFound,
    Overloaded,
    ServingError,
    one_line,
)
from container.messages.engine import AdapterInfo
from container.model.lora.checkpoint import CONFIG, Weights, read_weights
from container.model.lora.layers import LoraLayers
from container.model.lora.loaded import LoadedAdapters
from container.model.lora.record import AdapterRecord
from container.model.lora.source import Download, find_adapter
from container.settings.model import ModelSettings
from container.settings.process_env import ADAPTER_RECORD, ADDITIONAL_DATA

log = logging.getLogger(__name__)

MAX_NAME, MAX_SOURCE = 256, 4096
# Adapters that are downloaded and read at a time.
MAX_READING = 16
# Removed names that are remembered, to tell a late request for one from another model's name.
MAX_REMOVED = 100
POLL_S = 0.002


@dataclass(frozen=True, slots=True)
class _Known:
    number: int
    source: str
    folder: Path
    pin: bool


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    folder: Path
    weights: Weights


@dataclass(frozen=True, slots=True)
class _Reading:
    """An adapter that is read in another thread, to be registered."""

    source: str
    preload: bool
    pin: bool
    checkpoint: Future[_Checkpoint]
    is_registered: Future[None]


class LoraManager:
    """Owns the registered adapters of one engine; one thread uses it and calls `poll`."""

    def __init__(
        self,
        lora_layers: LoraLayers,
        max_in_memory: int,
        record: AdapterRecord | None = None,
        download: Download = snapshot_download,
    ) -> None:
        self.lora_layers = lora_layers
        self._loaded = LoadedAdapters(lora_layers, max_in_memory)
        self._record = record
        self._download = download
        self._known: dict[str, _Known] = {}
        self._reading: dict[str, _Reading] = {}
        self._removed: deque[str] = deque(maxlen=MAX_REMOVED)
        self._next_number = NO_ADAPTER + 1
        self._is_recording = False

    @property
    def has_work(self) -> bool:
        """Whether `poll` has something to do, now or soon."""
        return bool(self._reading) or self._loaded.has_work

    def acquire(self, name: str) -> int:
        """Load an adapter if necessary and add one reference. Raises NotFound or Overloaded."""
        known = self._find(name)
        self._loaded.want(known.number, known.folder, is_pinned=known.pin)
        self._loaded.use(known.number)
        return known.number

    def loading(self, number: int) -> "Future[None] | None":
        """Return the loading of an acquired adapter; None if it can be used already."""
        return self._loaded.loading(number)

    def release(self, number: int) -> None:
        """Drop one reference to an adapter."""
        is_last = self._loaded.release(number)
        if is_last and number not in {known.number for known in self._known.values()}:
            self._loaded.drop(number)

    def add(
        self, name: str, source: str, *, preload: bool = True, pin: bool = False
    ) -> "Future[None]":
        """Register an adapter, after it was downloaded and read in another thread.

        Raises Conflict, InvalidParameter or Overloaded, or the future does.
        """
        if not name or len(name) > MAX_NAME:
            raise InvalidParameter(f"`name` must have 1 to {MAX_NAME} characters", field="name")
        if len(source) > MAX_SOURCE:
            raise InvalidParameter(f"`src` must have 1 to {MAX_SOURCE} characters", field="src")
        if name in self._known or name in self._reading:
            raise Conflict(f"adapter {name!r} is registered already", field="name")
        if len(self._reading) >= MAX_READING:
            raise Overloaded(f"{MAX_READING} adapters are being registered", retry_after_s=1)
        checkpoint = run_in_background("adapter-read", lambda: self._read(source))
        is_registered: Future[None] = Future()
        self._reading[name] = _Reading(source, preload, pin, checkpoint, is_registered)
        return is_registered

    def add_now(self, name: str, source: str, *, preload: bool = True, pin: bool = False) -> None:
        """Register an adapter and wait for it; at start only, since no step runs meanwhile."""
        is_registered = self.add(name, source, preload=preload, pin=pin)
        while not is_registered.done():
            self.poll()
            time.sleep(POLL_S)
        is_registered.result()

    def remove(self, name: str) -> None:
        """Unregister an adapter; running requests finish with it. Raises NotFound."""
        number = self._find(name).number
        del self._known[name]
        self._removed.append(name)
        self._loaded.drop(number)
        log.info("adapter %s unregistered", name)
        self._write_record()

    def infos(self) -> list[AdapterInfo]:
        """All registered adapters, in registration order."""
        return [
            AdapterInfo(name, known.source, known.number in self._loaded, known.pin)
            for name, known in self._known.items()
        ]

    def removed(self) -> list[str]:
        """Names that were registered and no longer are; the last ones only."""
        return [name for name in self._removed if name not in self._known]

    def poll(self) -> None:
        """Register what was read and install what was built; call it between steps."""
        for name, reading in list(self._reading.items()):
            if reading.checkpoint.done():
                del self._reading[name]
                self._finish_reading(name, reading)
        self._loaded.poll()

    def start_recording(self) -> None:
        """Register the adapters that a previous engine recorded, and record from now on.

        One that cannot be registered any more is left out, so that it does not stop the start.
        """
        for name, source, pin in self._record.read() if self._record is not None else []:
            if name in self._known:
                continue
            try:
                self.add_now(name, source, preload=pin, pin=pin)
            except ServingError as error:
                log.error("adapter %s: not registered again: %s", name, error.message)
        self._is_recording = True

    def _find(self, name: str) -> _Known:
        known = self._known.get(name)
        if known is None:
            names = ", ".join(self._known) or "none"
            raise NotFound(f"adapter {name!r} is not known; known are: {names}", field="adapter")
        return known

    def _finish_reading(self, name: str, reading: _Reading) -> None:
        error = reading.checkpoint.exception()
        if error is None:
            try:
                self._register(name, reading, reading.checkpoint.result())
            except Overloaded as full:
                error = full
        if error is None:
            return
        if not isinstance(error, ServingError):  # of this adapter only
            log.error("adapter %s: not registered: %s", name, one_line(error), exc_info=error)
            error = InternalError("the adapter cannot be registered; the cause is in the log")
        reading.is_registered.set_exception(error)

    def _register(self, name: str, reading: _Reading, checkpoint: _Checkpoint) -> None:
        """Register an adapter that was read. Raises Overloaded if it cannot be pinned."""
        known = _Known(self._next_number, reading.source, checkpoint.folder, reading.pin)
        self._next_number += 1
        if reading.preload or reading.pin:
            try:
                self._loaded.want(
                    known.number, known.folder, is_pinned=known.pin, weights=checkpoint.weights
                )
            except Overloaded:
                if known.pin:
                    raise
                log.info("adapter %s: no free slot, loading it on first use", name)
        self._known[name] = known
        loading = self._loaded.loading(known.number)
        if loading is None:
            self._end_registration(name, reading, None)
        else:
            loading.add_done_callback(
                lambda done: self._end_registration(name, reading, done.exception())
            )

    def _end_registration(self, name: str, reading: _Reading, error: BaseException | None) -> None:
        if error is not None:
            self._known.pop(name, None)
            reading.is_registered.set_exception(error)
            return
        log.info("adapter %s registered from %s", name, reading.source)
        self._write_record()
        reading.is_registered.set_result(None)

    def _write_record(self) -> None:
        if self._record is not None and self._is_recording:
            self._record.write(
                (name, known.source, known.pin) for name, known in self._known.items()
            )

    def _read(self, source: str) -> _Checkpoint:
        """Find or download an adapter and read its weights. Raises InvalidParameter."""
        folder = find_adapter(source, self._download)
        return _Checkpoint(
            folder, read_weights(folder, self.lora_layers.shapes, self.lora_layers.dtype)
        )


def open_store(
    settings: ModelSettings, lora_layers: LoraLayers, progress: Callable[[str], None]
) -> LoraManager:
    """Create the manager with the adapters of the settings. Raises ModelLoadError."""
    path = os.environ.get(ADAPTER_RECORD)
    record = AdapterRecord(Path(path)) if path else None
    store = LoraManager(lora_layers, settings.max_adapters_in_memory, record)
    for name, source in named_at_start(settings.lora_adapters).items():
        progress(f"loading adapter {name}")
        try:
            store.add_now(name, source)
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
