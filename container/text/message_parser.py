"""Parses a streamed completion into a message: reasoning, content and tool calls.

       <think> reasoning </think> content <tool_call> ... </tool_call>
The parser emits each region as deltas and buffers text that may still turn out to be a marker. The
joined deltas of a message do not depend on how the text was split.
"""

from collections.abc import Callable, Sequence
from typing import Any

from container.text.delta import Delta as Delta
from container.text.delta import DeltaKind as DeltaKind
from container.text.delta import SteppedParser
from container.text.reasoning import Reasoning as Reasoning
from container.text.reasoning import recognise_reasoning as recognise_reasoning
from container.text.stop_strings import partial_match_len
from container.text.tool_calls.calls_parser import CallsParser
from container.text.tool_calls.syntax import ToolFormat

# Ends thoughts that the template says nothing of; calls at the start may stand behind it.
THOUGHTS_END = "</think>"


class MessageParser(SteppedParser):
    """Parses completions with marked reasoning, marked tool calls, or both.

    `schemas` has the parameters of each tool, for arguments that are not written as JSON.
    `content_marks` are texts around content, which are left out.
    """

    def __init__(
        self,
        reasoning: Reasoning | None,
        tools: ToolFormat | None,
        *,
        starts_in_reasoning: bool = False,
        schemas: dict[str, dict[str, Any]] | None = None,
        content_marks: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self._reasoning = reasoning
        self._tools = tools
        self._triggers = tools.triggers if tools else []
        self._schemas = schemas or {}
        self._content_marks = list(content_marks)
        has_start = tools is not None and tools.only_at_start
        self._restarts = [THOUGHTS_END] if has_start and reasoning is None else []
        self._blank = ""  # trailing blanks, emitted only if more text follows
        self._is_empty = True  # the region has emitted nothing yet
        self._strips_start = False
        self._calls: CallsParser | None = None
        self._num_calls = 0
        self._thought = ""  # that may be a call, and its deltas
        self._thought_deltas: list[Delta] = []
        # Each step emits the text that is certain and returns whether to run the next step.
        self._step = self._start
        if reasoning is None:
            self._step = self._first_content
        elif starts_in_reasoning:
            self._step = self._think

    @property
    def in_reasoning(self) -> bool:
        """Whether the text so far ends inside the reasoning."""
        return self._step in (self._think, self._call_in_thoughts)

    def finish(self) -> list[Delta]:
        """Return the deltas of the buffered text; the text may have ended anywhere."""
        if self._step == self._call_in_thoughts:
            self._finish_call_in_thoughts()
        elif self._step == self._think:
            self._emit_trimmed(DeltaKind.REASONING, self._text)
        elif self._step == self._call and self._calls is not None:
            self._finish_call(self._calls)
        elif self._step != self._after_calls:
            self._emit(DeltaKind.CONTENT, self._blank + self._text)
        self._text = ""
        return self._take_deltas()

    def _emit_trimmed(self, kind: DeltaKind, text: str) -> None:
        """Emit text without the blanks at its region's end, nor those at a stripped start."""
        text = self._blank + text
        if self._is_empty and self._strips_start:
            text = text.lstrip()
        body = text.rstrip()
        self._blank = text[len(body) :]
        if body:
            self._is_empty = False
            self._emit(kind, body)

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
        if text.startswith(self._reasoning.close):  # the reasoning was left out
            self._text = text[len(self._reasoning.close) :]
            return self._enter(self._first_content, strips_start=True)
        if mark.startswith(text) or self._reasoning.close.startswith(text):
            return False
        return self._enter(self._first_content)

    def _think(self) -> bool:
        assert self._reasoning is not None
        self._strips_start = True
        ends = [self._reasoning.close, *self._content_marks]
        before, mark = self._split(ends + self._triggers)
        self._emit_trimmed(DeltaKind.REASONING, before)
        if mark in ends:
            return self._enter(self._first_content, strips_start=True)
        if mark and self._tools is not None:
            self._thought = mark
            self._calls = CallsParser(self._tools, self._schemas, self._num_calls)
            self._thought_deltas = self._calls.feed(mark)
            self._step = self._call_in_thoughts
        return bool(mark)

    def _call_in_thoughts(self) -> bool:
        """Read a call before the reasoning is closed: a call only if it is never closed."""
        calls, reasoning = self._calls, self._reasoning
        assert calls is not None
        assert reasoning is not None
        self._thought += self._text
        self._thought_deltas += calls.feed(self._text)
        self._text = ""
        if not calls.is_rejected and reasoning.close not in self._thought:
            return False
        return self._return_to_thoughts()

    def _return_to_thoughts(self) -> bool:
        thought, self._thought = self._thought, ""
        length = max(len(text) for text in self._triggers if thought.startswith(text))
        self._emit_trimmed(DeltaKind.REASONING, thought[:length])
        self._text = thought[length:]
        self._step = self._think
        return True

    def _finish_call_in_thoughts(self) -> None:
        calls = self._calls
        assert calls is not None
        deltas = self._thought_deltas + calls.finish()
        names = [delta.text for delta in deltas if delta.kind is DeltaKind.CALL]
        if names and (not self._schemas or all(name in self._schemas for name in names)):
            self._deltas += deltas
        else:
            self._emit_trimmed(DeltaKind.REASONING, self._thought)

    def _first_content(self) -> bool:
        """Detect calls at the start, for a format that allows calls only there."""
        if self._strips_start:
            self._text = self._text.lstrip()
        tools = self._tools
        if tools is None or not tools.only_at_start:
            self._step = self._content
            return True
        return self._begin_calls(tools)

    def _content(self) -> bool:
        tools = self._tools
        marks = self._triggers
        before, mark = self._split(marks + self._content_marks + self._restarts)
        if not marks and not self._content_marks:
            text = before.lstrip() if self._strips_start and self._is_empty else before
            self._is_empty = self._is_empty and not text
            self._emit(DeltaKind.CONTENT, text)
            return False
        self._emit_trimmed(DeltaKind.CONTENT, before)
        if mark in self._content_marks:
            return True
        if mark and tools is not None:
            if mark in self._restarts:
                self._emit_trimmed(DeltaKind.CONTENT, mark)
            else:
                self._text = mark + self._text
            return self._begin_calls(tools)
        return False

    def _begin_calls(self, tools: ToolFormat) -> bool:
        self._calls = CallsParser(tools, self._schemas, self._num_calls)
        self._step = self._call
        return True

    def _call(self) -> bool:
        calls, tools = self._calls, self._tools
        assert calls is not None
        assert tools is not None
        self._deltas += calls.feed(self._text)
        self._text = ""
        if calls.is_rejected:
            return self._leave_calls(calls)
        if not calls.is_over:
            return False
        self._text, self._num_calls = calls.rest, calls.num_calls
        return self._enter(self._after_calls)

    def _leave_calls(self, calls: CallsParser) -> bool:
        """Go on with content: the text was no call."""
        marks = [mark for mark in self._triggers if calls.rest.startswith(mark)]
        length = max(map(len, marks), default=0)  # not to be found again
        self._text = calls.rest[length:]
        if self._num_calls:
            return self._enter(self._after_calls)
        self._emit_trimmed(DeltaKind.CONTENT, calls.rest[:length])
        self._step = self._content
        return True

    def _after_calls(self) -> bool:
        """Drop the text after calls, but for more calls."""
        tools = self._tools
        if tools is None or tools.only_at_start:
            self._text = ""
            return False
        _, mark = self._split(self._triggers)
        if not mark:
            return False
        self._text = mark + self._text
        return self._begin_calls(tools)

    def _finish_call(self, calls: CallsParser) -> None:
        self._deltas += calls.finish()
        if calls.is_rejected and not self._num_calls:
            self._emit_trimmed(DeltaKind.CONTENT, calls.rest)
            self._emit(DeltaKind.CONTENT, self._blank)

    def _split(self, marks: list[str]) -> tuple[str, str]:
        """Consume the text before the first of some marks, and that mark; else all final text.

        Returns the text, and the mark or "".
        """
        if not any(mark[0] in self._text for mark in marks):
            before, self._text = self._text, ""
            return before, ""
        matches = [
            (position, -len(mark), mark)
            for mark in marks
            if (position := self._text.find(mark)) >= 0
        ]
        if matches:
            position, _, mark = min(matches)
            rest = self._text[position:]
            if any(longer.startswith(rest) and longer != rest for longer in marks):
                before, self._text = self._text[:position], rest
                return before, ""
            before = self._text[:position]
            self._text = self._text[position + len(mark) :]
            return before, mark
        num_certain = len(self._text) - partial_match_len(self._text, marks)
        before = self._text[:num_certain]
        self._text = self._text[num_certain:]
        return before, ""
