"""Finds the names and arguments of probe calls in a rendered text, for each style of arguments."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from container.text.brackets import BracketScanner
from container.text.tool_calls.ends import QuotedEnd
from container.text.tool_calls.probes import Call
from container.text.tool_calls.syntax import KEY, PairMarks

# Finds the arguments between two positions of a text.
SpanOf = Callable[[str, int, int, dict[str, Any]], tuple[int, int] | None]


@dataclass(frozen=True, slots=True)
class Span:
    """Where a call's name and arguments are in a text."""

    name_start: int
    name_end: int
    start: int
    end: int


def find_spans(text: str, calls: list[Call], span_of: SpanOf) -> list[Span]:
    """Find the calls' names and, after each, its arguments; up to one that is missing."""
    spans: list[Span] = []
    position = 0
    for index, (name, arguments) in enumerate(calls):
        start = text.find(name, position)
        end = start + len(name)
        is_last = index + 1 == len(calls)
        stop = len(text) if is_last else text.find(calls[index + 1][0], end)
        span = span_of(text, end, stop, arguments) if 0 <= start < stop else None
        if span is None:
            break
        spans.append(Span(start, end, *span))
        position = span[1]
    return spans


def json_span(
    text: str, start: int, stop: int, arguments: dict[str, Any]
) -> tuple[int, int] | None:
    """Find a JSON object with these arguments."""
    decoder = json.JSONDecoder()
    for brace in (match.start() for match in re.finditer(r"\{", text[start:stop])):
        try:
            value, end = decoder.raw_decode(text, start + brace)
        except ValueError:
            continue
        if value == arguments:
            return start + brace, end
    return None


def python_span(text: str, start: int, stop: int, _: dict[str, Any]) -> tuple[int, int] | None:
    """Find the text between the parentheses after a name."""
    begin = text.find("(", start, stop) + 1
    scanner = BracketScanner(depth=1, quotes="\"'")
    length = scanner.scan(text[begin:stop])
    return (begin, begin + length - 1) if begin and scanner.is_closed else None


def gemma_span(
    quote: str, text: str, start: int, stop: int, _: dict[str, Any]
) -> tuple[int, int] | None:
    """Find the text between the braces after a name."""
    begin = text.find("{", start, stop) + 1
    length = QuotedEnd(quote).find(text[begin:stop])
    return (begin, begin + length) if begin and length is not None else None


def pair_span(
    marks: PairMarks, text: str, start: int, stop: int, arguments: dict[str, Any]
) -> tuple[int, int] | None:
    """Find the one pair of the arguments, with its marks."""
    ((key, value),) = arguments.items()
    begin = text.find(marks.open + key, start, stop)
    end = text.find(value, begin, stop) + len(value)
    close = marks.close.replace(KEY, key)
    return (begin, end + len(close)) if begin >= 0 and text.startswith(close, end) else None
