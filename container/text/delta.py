"""The pieces of a parsed message, and what parses one."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol


class DeltaKind(Enum):
    """The part of the message that a delta extends."""

    REASONING = auto()
    CONTENT = auto()
    CALL = auto()  # a new call; the text is its name
    ARGUMENTS = auto()  # more of the last call's arguments


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a message. `call_index` is the index of its tool call, from 0; -1 for none."""

    kind: DeltaKind
    text: str
    call_index: int = -1


class Parser(Protocol):
    """Parses one completion's text into deltas."""

    @property
    def in_reasoning(self) -> bool:
        """Whether the text so far ends inside the reasoning."""
        ...

    def feed(self, text: str) -> list[Delta]:
        """Parse more text."""
        ...

    def finish(self) -> list[Delta]:
        """Return the deltas of the buffered text; the text may have ended anywhere."""
        ...


class SteppedParser:
    """A parser's text and deltas. Its current step, which a subclass sets, consumes certain text.

    A step returns whether to run the next one.
    """

    _step: Callable[[], bool]

    def __init__(self) -> None:
        self._text = ""  # not emitted yet
        self._deltas: list[Delta] = []

    def feed(self, text: str) -> list[Delta]:
        """Parse more text."""
        self._text += text
        while self._step():
            pass
        return self._take_deltas()

    def _take_deltas(self) -> list[Delta]:
        deltas, self._deltas = self._deltas, []
        return deltas

    def _emit(self, kind: DeltaKind, text: str) -> None:
        if text:
            self._deltas.append(Delta(kind, text))


class PlainParser:
    """Parses completions that are content only."""

    in_reasoning = False

    def feed(self, text: str) -> list[Delta]:
        """Return the text as content."""
        return [Delta(DeltaKind.CONTENT, text)] if text else []

    def finish(self) -> list[Delta]:
        """Return nothing; no text is buffered."""
        return []
