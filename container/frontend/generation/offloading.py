"""Offloading: slow work goes where it does not hold up the other requests of this process."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Offload(Protocol):
    """Calls a function where it does not block the event loop, and waits for its result."""

    def __call__(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Return what the function returns, raise what it raises."""
        ...


def call(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Offload nothing: call it here."""
    return function(*args, **kwargs)
