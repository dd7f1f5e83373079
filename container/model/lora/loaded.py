"""The LoRA adapters in memory: which are requested, which are installed, and who uses them.

Weights are read and layers are built in another thread; the thread of the steps only installs the
result, between two steps. At most `max_in_memory` adapters are requested; for one more, the least
recently used one that no request uses is evicted.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from container.background import run_in_background
from container.errors import GenerationFailed, Overloaded, ServingError, one_line
from container.model.lora.checkpoint import Weights, read_weights
from container.model.lora.layers import LoraLayers, LoraStack

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Requested:
    folder: Path
    is_pinned: bool


@dataclass(frozen=True, slots=True)
class _Built:
    """A stack with its weights, by number, and the adapters that could not be read."""

    stack: LoraStack
    weights: dict[int, Weights]
    failures: dict[int, ServingError]


class LoadedAdapters:
    """Owns the adapters in memory, by number. One thread uses it and calls `poll`."""

    def __init__(self, lora_layers: LoraLayers, max_in_memory: int) -> None:
        self._lora_layers = lora_layers
        self._max_in_memory = max_in_memory
        self._requested: OrderedDict[int, _Requested] = OrderedDict()  # least recently used first
        self._installed: frozenset[int] = frozenset()
        self._weights: dict[int, Weights] = {}
        self._users: Counter[int] = Counter()
        self._loading: dict[int, Future[None]] = {}
        self._build: Future[_Built] | None = None

    @property
    def has_work(self) -> bool:
        """Whether `poll` has something to do, now or soon."""
        return self._build is not None or self._requested.keys() != self._installed

    def __contains__(self, number: int) -> bool:
        return number in self._installed and number in self._requested

    def loading(self, number: int) -> "Future[None] | None":
        """Return the loading of an adapter, done when it can be used; None if it is installed.

        The future raises a ServingError if the adapter cannot be loaded.
        """
        return self._loading.get(number)

    def want(
        self, number: int, folder: Path, *, is_pinned: bool, weights: Weights | None = None
    ) -> None:
        """Load an adapter, or note that it was used just now. Raises Overloaded."""
        if number in self._requested:
            self._requested.move_to_end(number)
            return
        while len(self._requested) >= self._max_in_memory:
            self._evict_one()
        self._requested[number] = _Requested(folder, is_pinned)
        if weights is not None:
            self._weights[number] = weights
        self._loading[number] = Future()

    def use(self, number: int) -> None:
        """Add a reference to a requested adapter, which stays in memory until it is released."""
        self._users[number] += 1

    def release(self, number: int) -> bool:
        """Drop a reference; return whether it was the last one."""
        self._users[number] -= 1
        if self._users[number]:
            return False
        del self._users[number]
        return True

    def drop(self, number: int) -> None:
        """Unload an adapter, unless a request uses it."""
        if number not in self._users:
            self._forget(number, None)

    def poll(self) -> None:
        """Install a stack that is built, and begin to build the next; call it between steps."""
        if self._build is not None and self._build.done():
            build, self._build = self._build, None
            self._finish(build)
        if self._build is None and self._requested.keys() != self._installed:
            folders = {number: requested.folder for number, requested in self._requested.items()}
            known = {number: self._weights[number] for number in folders if number in self._weights}
            self._build = run_in_background(
                "adapter-build", lambda: _build(self._lora_layers, folders, known)
            )

    def _finish(self, build: "Future[_Built]") -> None:
        if (
            error := build.exception()
        ) is not None:  # memory, say; the installed stack still serves
            log.error("adapters: layers cannot be built: %s", one_line(error), exc_info=error)
            failure = GenerationFailed("the adapter cannot be loaded; the cause is in the log")
            for number in self._requested.keys() - self._installed:
                self._forget(number, failure)
            self._installed &= self._requested.keys()
            return
        built = build.result()
        self._lora_layers.install(built.stack)
        self._installed = frozenset(built.weights)
        self._weights = {n: weights for n, weights in built.weights.items() if n in self._requested}
        for number, error in built.failures.items():
            self._forget(number, error)
        for number in built.weights:
            if (loading := self._loading.pop(number, None)) is not None:
                loading.set_result(None)

    def _evict_one(self) -> None:
        for number, requested in self._requested.items():
            if number not in self._users and not requested.is_pinned:
                self._forget(number, None)
                return
        raise Overloaded(
            f"all {self._max_in_memory} adapters in memory are in use "
            "(SAGEMAKER_MAX_NUMBER_OF_ADAPTERS_IN_MEMORY)",
            retry_after_s=1,
        )

    def _forget(self, number: int, error: ServingError | None) -> None:
        """Stop wanting an adapter; whoever waits for it gets the error, if there is one."""
        self._requested.pop(number, None)
        self._weights.pop(number, None)
        loading = self._loading.pop(number, None)
        if loading is not None and error is not None:
            loading.set_exception(error)
        elif loading is not None:
            loading.set_result(None)


def _build(
    lora_layers: LoraLayers, folders: Mapping[int, Path], known: Mapping[int, Weights]
) -> _Built:
    """Read the adapters that are not known and build the stack of all that can be read."""
    weights: dict[int, Weights] = {}
    failures: dict[int, ServingError] = {}
    for number, folder in folders.items():
        try:
            weights[number] = (
                known[number]
                if number in known
                else read_weights(folder, lora_layers.shapes, lora_layers.dtype)
            )
        except ServingError as error:
            failures[number] = error
    return _Built(lora_layers.build(weights), weights, failures)
