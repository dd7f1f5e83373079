"""Stop strings: found inside tokens and across them.

given out | pending: may be the start of a stop string |
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Released:
    """Text that may be given out now, and whether a stop string ended it."""

    text: str
    is_stopped: bool = False


class StopStrings:
    """Watches one sequence's text; holds back what may be the start of a stop string."""

    def __init__(self, stops: list[str], *, keep_match: bool) -> None:
        self._stops = [stop for stop in stops if stop]
        self._keep_match = keep_match
        self._pending = ""

    def add(self, text: str) -> Released:
        """Take new text; release all that cannot belong to a stop string any more."""
        self._pending += text
        positions = [(self._pending.find(stop), stop) for stop in self._stops]
        matches = [(start, -len(stop)) for start, stop in positions if start >= 0]
        if matches:
            start, negative_len = min(matches)  # the earliest; of those, the longest
            end = start - negative_len if self._keep_match else start
            released, self._pending = self._pending[:end], ""
            return Released(released, is_stopped=True)
        keep = len(self._pending) - held_len(self._pending, self._stops)
        released, self._pending = self._pending[:keep], self._pending[keep:]
        return Released(released)

    def flush(self) -> str:
        """Give out what is still held back; the text has ended without a match."""
        released, self._pending = self._pending, ""
        return released


def held_len(text: str, marks: Sequence[str]) -> int:
    """How many characters at the end of a text may be the start of one of the marks."""
    longest = max((len(mark) - 1 for mark in marks), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        tail = text[-length:]
        if any(mark.startswith(tail) for mark in marks):
            return length
    return 0
