"""Parses the tool calls of a message, from their first mark on."""

import functools
from collections.abc import Callable
from typing import Any

import regex

from container.text.brackets import BracketScanner
from container.text.delta import Delta, DeltaKind
from container.text.tool_calls.arguments import cut_to_json, to_json
from container.text.tool_calls.call_object import CallObject
from container.text.tool_calls.ends import end_finder
from container.text.tool_calls.syntax import ArgumentStyle, ToolFormat, flexible

_NAME = r"\s*(?P<name>[^\s<>{}\[\]()\"',;=]+?)\s*"


class CallsParser:
    """Turns the text of calls into deltas, where white space may differ from the format's.

    `is_rejected`: the text from `rest` on is no call. `is_over`: the calls have ended.
    """

    def __init__(
        self, form: ToolFormat, schemas: dict[str, dict[str, Any]], first_index: int = 0
    ) -> None:
        self._form = form
        self._schemas = schemas
        self._patterns = _patterns_of(form)
        self._index = first_index - 1
        self._object: CallObject | None = None
        self._scanner = BracketScanner()
        self._end = end_finder(form)
        self._name = ""
        self._is_certain = False  # a call was read
        self._name_known = False  # that of the JSON object being read
        self._deltas: list[Delta] = []
        self._consumed = ""  # since the last certain text
        self.rest = ""
        self.is_rejected = False
        self.is_over = False
        self._step: Callable[[], bool] = self._begin

    @property
    def num_calls(self) -> int:
        """The number of calls so far, those of earlier parsers included."""
        return self._index + 1

    def feed(self, text: str) -> list[Delta]:
        """Parse more text."""
        self.rest += text
        while not self.is_rejected and not self.is_over and self._step():
            pass
        deltas, self._deltas = self._deltas, []
        return deltas

    def finish(self) -> list[Delta]:
        """Return the deltas of text that ended inside of a call; `rest` is then not a call's."""
        if self._step == self._arguments:
            if self._form.arguments is not ArgumentStyle.JSON:
                schema = self._schemas.get(self._name, {})
                self.rest = cut_to_json(self._form, self.rest, schema)
            self._emit(DeltaKind.ARGUMENTS, self.rest)
            self.rest = ""
        elif not self._is_certain:
            self._finish_opening()
        deltas, self._deltas = self._deltas, []
        return deltas

    def _finish_opening(self) -> None:
        """Read text that ended before the first call's arguments; marks alone are dropped."""
        if self._step == self._begin and not self._form.name_end.strip():
            match = self._patterns.bare_name.match(self.rest)
            if match is not None and match["name"] in self._schemas:
                self._start_call(match["name"])
        if self._form.only_at_start and not self._is_certain:
            self._reject()
        self.rest = self.rest if self.is_rejected else ""

    def _begin(self) -> bool:
        return self._open(self._patterns.first)

    def _open(self, pattern: "regex.Pattern[str]") -> bool:
        """Read up to the arguments, or to the JSON object of a call."""
        match = pattern.match(self.rest, partial=True)
        if match is None:
            return self._reject()
        if match.partial:
            return False
        self._consume(match.end())
        if self._form.object_keys is not None:
            self._object = CallObject(*self._form.object_keys)
            self._step = self._call_object
            return True
        return self._start_call(match["name"])

    def _start_call(self, name: str) -> bool:
        if self._form.only_at_start and self._schemas and name not in self._schemas:
            return self._reject()
        self._is_certain = True
        self._consumed = ""
        self._name = name
        self._index += 1
        self._emit(DeltaKind.CALL, name)
        self._scanner = BracketScanner()
        self._end = end_finder(self._form)
        self._step = self._arguments
        return True

    def _call_object(self) -> bool:
        call = self._object
        assert call is not None
        text, self.rest = self.rest, ""
        if not self._name_known:
            self._consumed += text
        call.feed(text)
        if call.name and not self._name_known:
            self._name_known = True
            if not self._start_call(call.name):
                return False
            self._step = self._call_object
        self._emit(DeltaKind.ARGUMENTS, call.take())
        if call.is_broken:
            self.rest = call.rest if self._name_known else ""
            return self._reject()
        if not call.is_done:
            return False
        self.rest = call.rest
        self._name_known = False
        self._step = self._after_call
        return True

    def _arguments(self) -> bool:
        if self._form.arguments is ArgumentStyle.JSON:
            return self._json_arguments()
        end = self._end.find(self.rest)
        if end is None:
            return False
        schema = self._schemas.get(self._name, {})
        self._emit(DeltaKind.ARGUMENTS, to_json(self._form, self.rest[:end], schema))
        self.rest = self.rest[end:]
        self._step = self._after_call
        return True

    def _json_arguments(self) -> bool:
        if not self._scanner.has_begun:
            self.rest = self.rest.lstrip()
            if self.rest and self.rest[0] != "{":
                self._emit(DeltaKind.ARGUMENTS, "{}")
                self._step = self._after_call
                return True
        length = self._scanner.scan(self.rest)
        self._emit(DeltaKind.ARGUMENTS, self.rest[:length])
        self.rest = self.rest[length:]
        if self._scanner.is_closed:
            self._step = self._after_call
        return self._scanner.is_closed

    def _after_call(self) -> bool:
        """Read the call's closing mark, if there is one."""
        match = self._patterns.call_end.match(self.rest, partial=True)
        if match is not None and match.partial:
            return False
        self.rest = self.rest[match.end() :] if match else self.rest
        self._step = self._between
        return True

    def _between(self) -> bool:
        """Detect another call, or else the end."""
        match = self._patterns.following.match(self.rest, partial=True)
        if match is not None and match.partial:
            return False
        if match is not None:
            return self._open(self._patterns.following)
        end = self._patterns.end.match(self.rest, partial=True)
        if end is not None and end.partial:
            return False
        self.rest = self.rest[end.end() :] if end else self.rest
        self.is_over = True
        return False

    def _consume(self, length: int) -> None:
        self._consumed += self.rest[:length]
        self.rest = self.rest[length:]

    def _reject(self) -> bool:
        """Return the text that no call can begin with; after a call it is the end."""
        self.is_over, self.is_rejected = self._is_certain, not self._is_certain
        self.rest = self._consumed + self.rest
        self._consumed = ""
        return False

    def _emit(self, kind: DeltaKind, text: str) -> None:
        if text:
            self._deltas.append(Delta(kind, text, self._index))


class _Patterns:
    """The regexes of a format, compiled."""

    def __init__(self, form: ToolFormat) -> None:
        if form.object_keys is not None:
            opening, head = form.object_prefix, r"\s*(?=\{)"
            call_end, braces = form.call_end.lstrip("} \n"), r"[\s}]*"
        else:
            opening, head = form.call_begin, _NAME + _after_name(form)
            call_end, braces = form.call_end, r"\s*"
        begin = _begin_of(form, (form.begin + opening).strip())
        separator = flexible(form.separator.strip()) if form.separator.strip() else "[,;]?"
        self.first = regex.compile(rf"\s*{begin}{head}")
        self.bare_name = regex.compile(rf"\s*{begin}\s*(?P<name>[^\s<]+)")
        self.call_end = regex.compile(braces + flexible(call_end.strip()))
        self.end = regex.compile(rf"\s*{flexible(form.end.strip())}")
        following = _opening_of(form, opening.strip())
        self.following = regex.compile(rf"\s*(?:{separator})?\s*{following}{head}")


def _begin_of(form: ToolFormat, opening: str) -> str:
    """Write a regex for the text before the first name, or before its JSON object."""
    others = "|".join(flexible(mark.strip()) for mark in form.other_triggers) or "(?!)"
    if form.only_at_start:
        return rf"(?:{others})?\s*{flexible(opening)}"
    if form.inner_trigger:  # the mark before it may be missing
        inner = opening.index(form.inner_trigger)
        return rf"(?:{flexible(opening[:inner].strip())})?\s*{_opening_of(form, opening[inner:])}"
    rest = _opening_of(form, opening.removeprefix(form.trigger).strip())
    return rf"(?:{flexible(form.trigger)}|{others})\s*{rest}"


def _opening_of(form: ToolFormat, text: str) -> str:
    """Write a regex for a part of the opening, whose optional text may be missing."""
    optional = flexible(form.optional or ("call" if form.arguments is ArgumentStyle.GEMMA else ""))
    source = flexible(text)
    return source.replace(optional, f"(?:{optional})?", 1) if optional else source


def _after_name(form: ToolFormat) -> str:
    """Write a regex for the end of a name: its own mark, or else the next mark."""
    if form.name_end.strip():
        return flexible(form.name_end.strip())
    if form.arguments is not ArgumentStyle.XML:
        return r"(?=\{)"
    marks = (form.pairs.open.strip(), (form.call_end + form.end).strip())
    return rf"(?=\s*(?:{'|'.join(flexible(mark) for mark in marks)}))"


@functools.lru_cache(maxsize=64)
def _patterns_of(form: ToolFormat) -> _Patterns:
    return _Patterns(form)
