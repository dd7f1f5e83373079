"""Offloading: keeps slow work from blocking the other requests of this process.

A slow call runs in a thread, of the pool for its kind. A long loop yields to other requests between
its pieces.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import gevent

T = TypeVar("T")
# The other requests wait for at most this long.
SLICE_S = 0.01
# A sleep of 0 returns some fifty times before timers and sockets are looked at again.
YIELD_S = 1e-6


class Offload(Protocol):
    """Calls a function without blocking the event loop, and waits for its result."""

    def __call__(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Return the function's result, or raise its exception."""
        ...


def call(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call the function here, without offloading."""
    return function(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class Offloads:
    """A pool for each kind of work, so that much of one kind does not hold up another."""

    texts: Offload = call
    grammars: Offload = call
    images: Offload = call
    files: Offload = call


class TimeSlice:
    """Yields to the other requests when a loop of this one has run for SLICE_S."""

    def __init__(self) -> None:
        self._until = time.monotonic() + SLICE_S

    def yield_if_over(self) -> None:
        """Yield to the other requests if SLICE_S is over; call it in each iteration."""
        if time.monotonic() >= self._until:
            gevent.sleep(YIELD_S)
            self._until = time.monotonic() + SLICE_S


def in_pieces(items: Iterable[T]) -> Iterator[T]:
    """Yield the items; between two of them the other requests may run."""
    time_slice = TimeSlice()
    for item in items:
        time_slice.yield_if_over()
        yield item
