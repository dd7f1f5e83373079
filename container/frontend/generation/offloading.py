"""Offloading: slow work goes where it does not hold up the other requests of this process.

What takes long in one call goes to a thread, of the pool for its kind; a long loop goes on in
pieces, between which the other requests have their turn.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import gevent

T = TypeVar("T")
# The other requests wait for at most this long.
PIECE_S = 0.01


class Offload(Protocol):
    """Calls a function where it does not block the event loop, and waits for its result."""

    def __call__(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Return what the function returns, raise what it raises."""
        ...


def call(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Offload nothing: call it here."""
    return function(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class Offloads:
    """A pool for each kind of work, so that much of one kind does not hold up another."""

    texts: Offload = call
    grammars: Offload = call
    images: Offload = call
    files: Offload = call


class Turns:
    """Gives the other requests a turn when a loop of this one has run for PIECE_S."""

    def __init__(self) -> None:
        self._until = time.monotonic() + PIECE_S

    def give(self) -> None:
        """Let the others run if it is time; call it in every round of the loop."""
        if time.monotonic() >= self._until:
            gevent.sleep(0)
            self._until = time.monotonic() + PIECE_S


def in_pieces(items: Iterable[T]) -> Iterator[T]:
    """Yield the items; between two of them the other requests may have a turn."""
    turns = Turns()
    for item in items:
        turns.give()
        yield item
