"""The LoRA adapter registry that the engine needs: adapter ids by name. No tensors."""

from concurrent.futures import Future
from typing import Protocol

from container.messages.engine import AdapterInfo

# The adapter id of the base model, and its cache namespace (container.engine.blocks.block_pool).
NO_ADAPTER = 0


class Adapters(Protocol):
    """Registered adapters. An id is never reused, so no two adapters share a cached prefix."""

    @property
    def has_work(self) -> bool:
        """Whether an adapter is being registered or loaded, so that `poll` must be called."""
        ...

    def poll(self) -> None:
        """Take the results of the work in other threads; called between two steps."""
        ...

    def acquire(self, name: str) -> int:
        """Begin to load an adapter if necessary, add one reference to it and return its id.

        The adapter stays in memory until `release` has been called as often as `acquire`.
        Raises NotFound, or Overloaded when every adapter slot in memory is in use.
        """
        ...

    def loading(self, number: int) -> "Future[None] | None":
        """Return the loading of an acquired adapter; None if it can be used already."""
        ...

    def release(self, number: int) -> None:
        """Drop one reference to an adapter."""
        ...

    def add(self, name: str, source: str, *, preload: bool, pin: bool) -> "Future[None]":
        """Begin to register an adapter. This or the future raises a ServingError."""
        ...

    def remove(self, name: str) -> None:
        """Unregister an adapter; running requests finish with it. Raises NotFound."""
        ...

    def infos(self) -> list[AdapterInfo]:
        """All registered adapters, in registration order."""
        ...

    def removed(self) -> list[str]:
        """Names that were registered and no longer are; the last ones only."""
        ...
