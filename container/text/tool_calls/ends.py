"""Finds where a call's arguments end in streamed text, without reading any text twice."""

import functools
from typing import Protocol

import regex

from container.text.brackets import BracketScanner
from container.text.tool_calls.syntax import ArgumentStyle, ToolFormat, flexible

# A JSON string begins where a value may; values that Gemma's form does not cover are JSON.
_JSON_QUOTE = r'(?<=[\[{,:\s])"'


class EndFinder(Protocol):
    """Finds the end of arguments that are not JSON."""

    def find(self, text: str) -> int | None:
        """Return the end's position in the text so far, which only grows; None without one."""
        ...


def end_finder(form: ToolFormat) -> EndFinder:
    """Create the finder for one call of a format."""
    if form.arguments is ArgumentStyle.PYTHON:
        return _BracketEnd()
    if form.arguments is ArgumentStyle.GEMMA:
        return QuotedEnd(form.quote)
    return _MarkEnd(form.call_end)


class _BracketEnd:
    """Finds the bracket that closes Python's arguments."""

    def __init__(self) -> None:
        self._scanner = BracketScanner(depth=1, quotes="\"'")
        self._position = 0

    def find(self, text: str) -> int | None:
        self._position += self._scanner.scan(text[self._position :])
        return self._position - 1 if self._scanner.is_closed else None


class QuotedEnd:
    """Finds the brace that closes Gemma's arguments, outside of its quotes and JSON's strings."""

    def __init__(self, quote: str) -> None:
        mark = regex.escape(quote)
        self._marks = {
            "": regex.compile(rf"{mark}|{_JSON_QUOTE}|[{{}}]"),
            quote: regex.compile(mark),
            '"': regex.compile(r'"|\\.', regex.DOTALL),
        }
        self._quote = ""  # that of the string that is open
        self._position = 0
        self._depth = 1

    def find(self, text: str) -> int | None:
        """Return the end's position in the text so far, which only grows; None without one."""
        while (match := self._search(text)) is not None:
            self._position = match.start() if match.partial else match.end()
            if match.partial:
                return None
            if match[0] == self._quote:
                self._quote = ""
            elif not self._quote and match[0] in self._marks:
                self._quote = match[0]
            elif not self._quote:
                self._depth += 1 if match[0] == "{" else -1
                if self._depth == 0:
                    return int(match.start())
        self._position = len(text)
        return None

    def _search(self, text: str) -> "regex.Match[str] | None":
        return self._marks[self._quote].search(text, self._position, partial=True)


class _MarkEnd:
    """Finds the mark that ends a call."""

    def __init__(self, mark: str) -> None:
        self._mark = _compiled(mark)
        self._position = 0

    def find(self, text: str) -> int | None:
        match = self._mark.search(text, self._position, partial=True)
        self._position = len(text) if match is None else match.start()
        return None if match is None or match.partial else match.start()


@functools.lru_cache(maxsize=64)
def _compiled(mark: str) -> "regex.Pattern[str]":
    return regex.compile(flexible(mark))
