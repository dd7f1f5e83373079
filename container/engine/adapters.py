"""What the engine needs of a store of LoRA adapters: numbers for names. No tensors here."""

from typing import Protocol

from container.messages.engine import AdapterInfo

# The number of no adapter, which is also the root of its prefixes (container.engine.block_pool).
NO_ADAPTER = 0


class Adapters(Protocol):
    """Known adapters. A number is never used again, so cached prefixes of one are its own."""

    def acquire(self, name: str) -> int:
        """Have an adapter in memory until it is released as often as acquired.

        Raises NotFound, or Overloaded when all places in memory are in use.
        """
        ...

    def release(self, number: int) -> None:
        """Say that one request less uses it."""
        ...

    def add(self, name: str, source: str, *, preload: bool, pin: bool) -> None:
        """Make an adapter known. Raises Conflict or InvalidParameter."""
        ...

    def remove(self, name: str) -> None:
        """Forget it; running requests finish with it. Raises NotFound."""
        ...

    def infos(self) -> list[AdapterInfo]:
        """All known adapters, in the order of their coming."""
        ...
