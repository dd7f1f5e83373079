"""Parses a streamed completion into a message: reasoning, content and tool calls.

       <think> reasoning </think> content <tool_call> ... </tool_call>
The parser emits each region as deltas and buffers text that may still turn out to be a marker. The
joined deltas of a message do not depend on how the text was split.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

from container.text.brackets import BracketScanner
from container.text.stop_strings import held_len
from container.text.tool_formats import ArgumentStyle, ToolFormat, to_json


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


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The marks around a model's reasoning."""

    open: str
    close: str


REASONINGS = [
    Reasoning("<think>", "</think>"),
    Reasoning("[THINK]", "[/THINK]"),
    Reasoning("<seed:think>", "</seed:think>"),
]


def recognise_reasoning(template: str) -> Reasoning | None:
    """Find the reasoning marks that a chat template uses; None if it uses none."""
    return next((reasoning for reasoning in REASONINGS if reasoning.close in template), None)


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


class PlainParser:
    """Parses completions that are content only."""

    in_reasoning = False

    def feed(self, text: str) -> list[Delta]:
        """Return the text as content."""
        return [Delta(DeltaKind.CONTENT, text)] if text else []

    def finish(self) -> list[Delta]:
        """Return nothing; no text is buffered."""
        return []


class MessageParser:
    """Parses completions with marked reasoning, marked tool calls, or both.

    `schemas` has the parameters of each tool, for arguments that are not written as JSON.
    """

    def __init__(
        self,
        reasoning: Reasoning | None,
        tools: ToolFormat | None,
        *,
        starts_in_reasoning: bool = False,
        schemas: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self._reasoning = reasoning
        self._tools = tools
        self._schemas = schemas or {}
        self._text = ""  # not emitted yet
        self._blank = ""  # trailing blanks, emitted only if more text follows
        self._is_empty = True  # the region has emitted nothing yet
        self._strips_start = False
        self._deltas: list[Delta] = []
        self._num_calls = 0
        self._name = ""
        self._scanner = BracketScanner()
        # Each step emits the text that is certain and returns whether to run the next step.
        self._step: Callable[[], bool] = self._start
        if reasoning is None:
            self._step = self._content if tools is None else self._first_content
        elif starts_in_reasoning:
            self._step = self._think

    @property
    def in_reasoning(self) -> bool:
        """Whether the text so far ends inside the reasoning."""
        return self._step == self._think

    def feed(self, text: str) -> list[Delta]:
        """Parse more text."""
        self._text += text
        while self._step():
            pass
        return self._taken()

    def finish(self) -> list[Delta]:
        """Return the deltas of the buffered text; the text may have ended anywhere."""
        if self._step == self._think:
            self._tell_trimmed(DeltaKind.REASONING, self._text)
        elif self._step == self._arguments:
            self._tell(DeltaKind.ARGUMENTS, self._text)
        elif self._step not in (self._after_call, self._over):
            self._tell(DeltaKind.CONTENT, self._blank + self._text)
        self._text = ""
        return self._taken()

    def _taken(self) -> list[Delta]:
        deltas, self._deltas = self._deltas, []
        return deltas

    def _tell(self, kind: DeltaKind, text: str) -> None:
        if text:
            is_call = kind in (DeltaKind.CALL, DeltaKind.ARGUMENTS)
            self._deltas.append(Delta(kind, text, self._num_calls - 1 if is_call else -1))

    def _tell_trimmed(self, kind: DeltaKind, text: str) -> None:
        """Emit text without the blanks at its region's end, nor those at a stripped start."""
        text = self._blank + text
        if self._is_empty and self._strips_start:
            text = text.lstrip()
        body = text.rstrip()
        self._blank = text[len(body) :]
        if body:
            self._is_empty = False
            self._tell(kind, body)

    def _enter(self, step: Callable[[], bool], *, strips_start: bool = False) -> bool:
        self._step = step
        self._blank = ""
        self._is_empty = True
        self._strips_start = strips_start
        return True

    def _start(self) -> bool:
        """Detect whether the message starts with reasoning; it cannot start later."""
        assert self._reasoning is not None
        text = self._text.lstrip()
        mark = self._reasoning.open
        if text.startswith(mark):
            self._text = text[len(mark) :]
            return self._enter(self._think)
        if mark.startswith(text):  # nothing, or the start of the mark
            return False
        return self._enter(self._first_content)

    def _think(self) -> bool:
        assert self._reasoning is not None
        self._strips_start = True
        before, is_closed = self._split(self._reasoning.close)
        self._tell_trimmed(DeltaKind.REASONING, before)
        return is_closed and self._enter(self._first_content, strips_start=True)

    def _first_content(self) -> bool:
        """Detect calls at the start, for a format that allows calls only there."""
        if self._strips_start:
            self._text = self._text.lstrip()
        tools = self._tools
        if tools is None or not tools.only_at_start:
            self._step = self._content
            return True
        if self._text.startswith(tools.trigger):
            return self._enter(self._call_begin)
        if tools.trigger.startswith(self._text):
            return False
        self._tools = None
        self._step = self._content
        return True

    def _content(self) -> bool:
        if self._tools is None:
            text = self._text.lstrip() if self._strips_start and self._is_empty else self._text
            self._is_empty = self._is_empty and not text
            self._tell(DeltaKind.CONTENT, text)
            self._text = ""
            return False
        before, has_trigger = self._split(self._tools.trigger)
        self._tell_trimmed(DeltaKind.CONTENT, before)
        if has_trigger:
            self._text = self._tools.trigger + self._text
            return self._enter(self._call_begin)
        return False

    def _call_begin(self) -> bool:
        assert self._tools is not None
        opening = self._tools.call_begin
        if self._num_calls == 0:
            opening = self._tools.begin + opening
        if len(self._text) < len(opening):
            return False
        if not self._text.startswith(opening):  # not a call after all
            self._tools = None
            return self._enter(self._content)
        self._text = self._text[len(opening) :]
        self._step = self._call_name
        return True

    def _call_name(self) -> bool:
        assert self._tools is not None
        name, mark, rest = self._text.partition(self._tools.name_end)
        if not mark:
            return False
        self._text = rest
        self._name = name
        self._num_calls += 1
        self._tell(DeltaKind.CALL, name)
        self._scanner = BracketScanner()
        self._step = self._arguments
        return True

    def _arguments(self) -> bool:
        assert self._tools is not None
        style = self._tools.arguments
        if style is ArgumentStyle.JSON:
            length = self._scanner.scan(self._text)
            complete = self._text[:length]
            is_whole = self._scanner.is_closed
        else:
            end = _end_of(self._text, self._tools)
            if end is None:
                return False
            length, is_whole = end, True
            complete = to_json(style, self._text[:length], self._schemas.get(self._name, {}))
        self._tell(DeltaKind.ARGUMENTS, complete)
        self._text = self._text[length:]
        if is_whole:
            self._step = self._after_call
        return is_whole

    def _after_call(self) -> bool:
        """Detect another call, or else the end: text after the last call is dropped."""
        assert self._tools is not None
        following = self._tools.call_end + self._tools.separator
        another = following + self._tools.call_begin
        if self._text.startswith(another):
            if not self._tools.call_begin and len(self._text) == len(another):
                return False
            self._text = self._text[len(following) :]
            self._step = self._call_begin
            return True
        if another.startswith(self._text):
            return False
        self._step = self._over
        return True

    def _over(self) -> bool:
        self._text = ""
        return False

    def _split(self, mark: str) -> tuple[str, bool]:
        """Take the text before a mark and the mark itself; without one, all that is certain.

        Returns the text, and whether the mark was there.
        """
        before, separator, rest = self._text.partition(mark)
        if separator:
            self._text = rest
            return before, True
        num_certain = len(before) - held_len(before, [mark])
        self._text = before[num_certain:]
        return before[:num_certain], False


def _end_of(text: str, tools: ToolFormat) -> int | None:
    """Find the end of arguments that are not JSON; None if the text does not contain it yet."""
    if tools.arguments in (ArgumentStyle.XML, ArgumentStyle.GEMMA):
        position = text.find(tools.call_end)
        return position if position >= 0 else None
    scanner = BracketScanner(depth=1, quotes="\"'")
    length = scanner.scan(text)
    return length - 1 if scanner.is_closed else None
