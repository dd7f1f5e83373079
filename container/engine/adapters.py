"""The LoRA adapter registry that the engine needs: adapter ids by name. No tensors."""

from typing import Protocol

from container.messages.engine import AdapterInfo

# The adapter id of the base model, and its cache namespace (container.engine.block_pool).
NO_ADAPTER = 0


class Adapters(Protocol):
    """Registered adapters. An id is never reused, so no two adapters share a cached prefix."""

    def acquire(self, name: str) -> int:
        """Load an adapter if necessary, add one reference to it and return its id.

        The adapter stays in memory until `release` has been called as often as `acquire`.
        Raises NotFound, or Overloaded when every adapter slot in memory is in use.
        """
        ...

    def release(self, number: int) -> None:
        """Drop one reference to an adapter."""
        ...

    def add(self, name: str, source: str, *, preload: bool, pin: bool) -> None:
        """Register an adapter. Raises Conflict or InvalidParameter."""
        ...

    def remove(self, name: str) -> None:
        """Unregister an adapter; running requests finish with it. Raises NotFound."""
        ...

    def infos(self) -> list[AdapterInfo]:
        """All registered adapters, in registration order."""
        ...
