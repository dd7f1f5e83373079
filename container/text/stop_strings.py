"""Stop strings: matched within tokens and across them.

released | pending: may be the start of a stop string |
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Released:
    """Text that can be sent now, and the stop string that ended it, if one has."""

    text: str
    stop: str | None = None

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string ended the text."""
        return self.stop is not None


class StopStrings:
    """Matches one sequence's text; buffers text that may be the start of a stop string."""

    def __init__(self, stops: list[str], *, keep_match: bool) -> None:
        self._stops = [stop for stop in stops if stop]
        self._keep_match = keep_match
        self._pending = ""

    def add(self, text: str) -> Released:
        """Add new text; release the text that can no longer belong to a stop string."""
        self._pending += text
        positions = [(self._pending.find(stop), stop) for stop in self._stops]
        matches = [(start, -len(stop), stop) for start, stop in positions if start >= 0]
        if matches:
            start, _, stop = min(matches)  # the earliest; of those, the longest
            end = start + len(stop) if self._keep_match else start
            released, self._pending = self._pending[:end], ""
            return Released(released, stop)
        num_certain = len(self._pending) - partial_match_len(self._pending, self._stops)
        released, self._pending = self._pending[:num_certain], self._pending[num_certain:]
        return Released(released)

    def flush(self) -> str:
        """Return the buffered text; the sequence has ended without a match."""
        released, self._pending = self._pending, ""
        return released


def partial_match_len(text: str, marks: Sequence[str]) -> int:
    """Return the length of the longest end of a text that may be the start of a mark."""
    longest = max((len(mark) - 1 for mark in marks), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        tail = text[-length:]
        if any(mark.startswith(tail) for mark in marks):
            return length
    return 0
