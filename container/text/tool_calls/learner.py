"""Learns how a model writes tool calls by rendering its chat template with probe calls.

The texts between a probe's name, keys and values are the format's fixed texts. A format counts as
learnt only if its parser reads the probes back from what the template rendered.
"""

import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from container.text import gemma_arguments
from container.text.brackets import BracketScanner
from container.text.delta import DeltaKind
from container.text.tool_calls.calls_parser import CallsParser
from container.text.tool_calls.syntax import (
    ID,
    INDEX,
    JSON_TYPES,
    KEY,
    ArgumentStyle,
    PairMarks,
    ToolFormat,
)

# Renders messages and tools, without a prompt for the reply if `opens_reply` is false. Raises
# anything for what the template refuses.
Render = Callable[..., str]
Call = tuple[str, dict[str, Any]]

USER, CONTENT = "probeuser", "probecontent"
NAMES = ("probe_first", "probe_other")
IDS = ("prbid0001", "prbid0002")
# Indentation of a template's source between its marks.
_NOISE = re.compile(r"(?<![\n ]) {4,}(?=\S|\n)")
_ATOM = re.compile(r"</?[^<>\s\"'=]*>|\[/?[A-Z_]+\]|\s+|\w+|.", re.DOTALL)


def learn(render: Render) -> ToolFormat | None:
    """Learn the format of a template's calls; None if it writes none that can be learnt."""
    for as_text in (False, True):
        form = _Learner(render, as_text=as_text).learn()
        if form is not None:
            return form
    return None


def writes_calls(render: Render) -> bool:
    """Whether a template writes the calls of earlier messages at all."""
    return any(
        _Learner(render, as_text=as_text).turn([(NAMES[0], {})]) is not None
        for as_text in (False, True)
    )


class _Learner:
    """Renders probes with one template."""

    def __init__(self, render: Render, *, as_text: bool = False) -> None:
        """`as_text`: arguments are passed as JSON text, not as an object."""
        self._render = render
        self._as_text = as_text

    def learn(self) -> ToolFormat | None:
        """Learn the texts around the calls, then those around the arguments."""
        for learn_arguments in (self._json, self._pairs):
            form = learn_arguments()
            if form is not None and self._is_read_back(form):
                return form
        return None

    # Rendering

    def turn(self, calls: list[Call], content: str = "") -> str | None:
        """Render the assistant's turn; None if the template refuses it or omits the calls."""
        written = [
            {
                "id": IDS[index],
                "type": "function",
                "function": {
                    "name": name,
                    "arguments": json.dumps(arguments) if self._as_text else arguments,
                },
            }
            for index, (name, arguments) in enumerate(calls)
        ]
        options: dict[str, Any] = {"tool_calls": written} if written else {}
        for written_content in (content, content or None):
            reply = {"role": "assistant", "content": written_content, **options}
            text = self._after_user([reply])
            if text and all(name in text for name, _ in calls):
                return text
        return None

    def opened(self) -> str | None:
        """Render the prompt for a reply."""
        return self._after_user([], opens_reply=True)

    def _after_user(
        self, replies: list[dict[str, Any]], *, opens_reply: bool = False
    ) -> str | None:
        messages = [{"role": "user", "content": USER}, *replies]
        try:
            text = self._render(messages, tools=_TOOLS, opens_reply=opens_reply)
        except Exception:  # a template is a program and can raise anything
            return None
        start = text.rfind(USER)
        return text[start + len(USER) :] if start >= 0 else None

    # The texts around calls

    def _opening(self, calls: list[Call]) -> str:
        """Return the text before the first name, from the start of the calls on."""
        first = calls[0][0]
        beside, alone = self.turn(calls, CONTENT) or "", self.turn(calls) or ""
        openings = []
        if CONTENT in beside[: beside.find(first)]:
            opening = _between(beside, CONTENT, first)
            openings.append(opening[len(_common_start(opening, self._after_content())) :])
        before = alone[: alone.find(first)]
        openings.append(before[len(_common_start(before, self.opened() or "")) :])
        return min((text for text in openings if text.strip()), key=len, default="")

    def _ending(self, tail: str, calls: str) -> str:
        """Return the text after the last call without the end of the turn, which no call holds."""
        after = self._after_content()
        tail = tail[: len(tail) - len(_common_end(tail, after))]
        marks = [mark for mark in _ATOM.findall(after) if len(mark) > 2 and mark not in calls]
        ends = [end for mark in marks if (end := tail.find(mark)) >= 0]
        return tail[: min(ends, default=len(tail))].rstrip()

    def _after_content(self) -> str:
        """Return the text after the content of a turn without calls."""
        plain = self.turn([], CONTENT) or ""
        return plain[plain.rfind(CONTENT) + len(CONTENT) :] if CONTENT in plain else ""

    def _json(self) -> ToolFormat | None:
        """Learn a format whose arguments are JSON."""
        return self._form(_json_span)

    def _pairs(self) -> ToolFormat | None:
        """Learn a format whose arguments are pairs of names and values."""
        probe = {"probe_key": "probevalue", "probe_second": "othervalue"}
        text = self.turn([(NAMES[0], probe)])
        texts = _texts_around(text or "", [NAMES[0], *(part for pair in probe.items() for part in pair)])
        if texts is None:
            return None
        before, key_end, _, _, _ = texts
        if before.strip() == "(" and key_end.strip().startswith("="):
            return self._form(_python_span, arguments=ArgumentStyle.PYTHON)
        if before.strip() == "{" and key_end.strip().startswith(":"):
            quote = key_end.strip().removeprefix(":").strip()
            return self._form(
                functools.partial(_gemma_span, quote), arguments=ArgumentStyle.GEMMA, quote=quote
            )
        marks = self._marks(texts)
        if marks is None:
            return None
        return self._form(
            functools.partial(_pair_span, marks), arguments=ArgumentStyle.XML, pairs=marks
        )

    def _marks(self, texts: list[str]) -> PairMarks | None:
        """Split the texts around two pairs into the marks that each has."""
        before, key_end, between, _, after = texts
        between, after = between.replace("probe_key", KEY), after.replace("probe_second", KEY)
        opening = _common_end(before, between)
        rest = between[: len(between) - len(opening)]
        close = _common_start(rest, after)
        if not opening.strip(" \n\"'") or not close.strip(" \n\"'"):
            return None
        key_ends = tuple(self._key_end(json_type, key_end) for json_type in JSON_TYPES)
        return PairMarks(
            opening,
            key_ends if len(set(key_ends)) > 1 else key_ends[:1],
            close,
            separator=rest[len(close) :],
        )

    def _key_end(self, json_type: str, default: str) -> str:
        """Return the text between a key and a value of a type, if it differs from a string's."""
        value, signs = _VALUES[json_type]
        text = self.turn([(NAMES[0], {"probe_key": value})]) or ""
        after = text[text.find("probe_key") + len("probe_key") :]
        if not text or after.startswith(default):
            return default
        starts = [match.start() for sign in signs for match in re.finditer(re.escape(sign), after)]
        starts = [start for start in starts if after[:start].endswith(default[-1:])]
        return after[: min(starts)] if starts else default

    def _form(self, span_of: "_SpanOf", **style: Any) -> ToolFormat | None:
        """Learn the texts around two calls, or around one where the template takes no more."""
        several = list(zip(NAMES, _ARGUMENTS, strict=True))
        for calls in (several, several[:1]):
            text = self.turn(calls)
            spans = _spans(text, calls, span_of) if text else []
            if text and len(spans) == len(calls):
                return replace(self._around(text, spans, calls), **style)
        return None

    def _around(self, text: str, spans: list["_Span"], calls: list[Call]) -> ToolFormat:
        first, last = spans[0], spans[-1]
        opening = _with_ids(self._opening(calls).lstrip())
        name_end = _with_ids(text[first.name_end : first.start])
        ending = _with_ids(self._ending(text[last.end :], text[first.name_start : last.end]))
        if last is first:
            return _as_format(_Parts("", opening, "", ending, ""), name_end, allows_several=False)
        between = _with_ids(text[first.end : last.name_start])
        opening, between = _indexed(opening, between)
        other_end = _with_ids(text[last.name_end : last.start])
        name_end, _ = _indexed(name_end, other_end, at_start=True)
        return _as_format(_parts_of(opening, between, ending), name_end, allows_several=True)

    # The proof

    def _is_read_back(self, form: ToolFormat) -> bool:
        """Whether the parser reads probes back from what the template rendered."""
        if (self.opened() or "").rstrip().endswith(form.trigger):
            return False  # the prompt for a reply would already hold a part of a call
        probes = _PROOFS
        if form.arguments is ArgumentStyle.PYTHON:  # whose strings some templates do not quote
            probes = [list(zip(NAMES, _ARGUMENTS, strict=True))]
        probes = probes if form.allows_several else [calls[:1] for calls in probes]
        return all(self._reads(form, calls) for calls in probes)

    def _reads(self, form: ToolFormat, calls: list[Call]) -> bool:
        text = self.turn(calls)
        if text is None:
            return False
        begin = text.rfind(form.trigger, 0, text.find(calls[0][0]))
        if begin < 0:
            return False
        parser = CallsParser(form, dict.fromkeys(NAMES, _SCHEMA))
        deltas = parser.feed(text[begin:]) + parser.finish()
        names = [delta.text for delta in deltas if delta.kind is DeltaKind.CALL]
        arguments = ["" for _ in names]
        for delta in deltas:
            if delta.kind is DeltaKind.ARGUMENTS:
                arguments[delta.call_index] += delta.text
        try:
            read = [(name, json.loads(text)) for name, text in zip(names, arguments, strict=True)]
        except ValueError:
            is_python = form.arguments is ArgumentStyle.PYTHON
            return is_python and names == [name for name, _ in calls]
        return read == calls


@dataclass(frozen=True, slots=True)
class _Span:
    """Where a call's name and arguments are in a text."""

    name_start: int
    name_end: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Parts:
    begin: str
    call_begin: str
    separator: str
    call_end: str
    end: str


_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "probe_key": {"type": "string", "description": "a text"},
        "probe_second": {"type": "string", "description": "a text"},
        "probe_count": {"type": "integer", "description": "a number"},
    },
    "required": [],
}
_TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": "A probe.", "parameters": _SCHEMA},
    }
    for name in NAMES
]
_PROOFS: list[list[Call]] = [
    [(NAMES[0], {"probe_key": 'a "b" <c>', "probe_count": 12}), (NAMES[1], {"probe_key": "x y"})],
    [(NAMES[0], {"probe_key": "line\nline {}", "probe_second": "z"}), (NAMES[1], {})],
]


# Finds the arguments between two positions of a text.
_SpanOf = Callable[[str, int, int, dict[str, Any]], tuple[int, int] | None]
_ARGUMENTS: list[dict[str, Any]] = [{"probe_key": "probevalue"}, {"probe_second": "othervalue"}]
# For each JSON type a value, and the texts that it may begin with.
_VALUES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "string": ("probevalue", ("probevalue",)),
    "number": (7, ("7",)),
    "boolean": (True, ("true", "True")),
    "null": (None, ("null", "None")),
    "object": ({"probe_inner": 1}, ("{",)),
    "array": (["probe_item"], ("[",)),
}


def _spans(text: str, calls: list[Call], span_of: _SpanOf) -> list[_Span]:
    """Find the calls' names and, after each, its arguments; up to one that is missing."""
    spans: list[_Span] = []
    position = 0
    for index, (name, arguments) in enumerate(calls):
        start = text.find(name, position)
        end = start + len(name)
        is_last = index + 1 == len(calls)
        stop = len(text) if is_last else text.find(calls[index + 1][0], end)
        found = span_of(text, end, stop, arguments) if 0 <= start < stop else None
        if found is None:
            break
        spans.append(_Span(start, end, *found))
        position = found[1]
    return spans


def _json_span(
    text: str, start: int, stop: int, arguments: dict[str, Any]
) -> tuple[int, int] | None:
    decoder = json.JSONDecoder()
    for brace in (match.start() for match in re.finditer(r"\{", text[start:stop])):
        try:
            value, end = decoder.raw_decode(text, start + brace)
        except ValueError:
            continue
        if value == arguments:
            return start + brace, end
    return None


def _python_span(
    text: str, start: int, stop: int, _: dict[str, Any]
) -> tuple[int, int] | None:
    begin = text.find("(", start, stop) + 1
    scanner = BracketScanner(depth=1, quotes="\"'")
    length = scanner.scan(text[begin:stop])
    return (begin, begin + length - 1) if begin and scanner.is_closed else None


def _gemma_span(
    quote: str, text: str, start: int, stop: int, _: dict[str, Any]
) -> tuple[int, int] | None:
    begin = text.find("{", start, stop) + 1
    length = gemma_arguments.end_of(text[begin:stop], quote)
    return (begin, begin + length) if begin and length is not None else None


def _pair_span(
    marks: PairMarks, text: str, start: int, stop: int, arguments: dict[str, Any]
) -> tuple[int, int] | None:
    ((key, value),) = arguments.items()
    begin = text.find(marks.open + key, start, stop)
    end = text.find(value, begin, stop) + len(value)
    close = marks.close.replace(KEY, key)
    return (begin, end + len(close)) if begin >= 0 and text.startswith(close, end) else None


def _texts_around(text: str, parts: list[str]) -> list[str] | None:
    """Return the texts after each of some parts, which follow one another; None if one is missing."""
    start = text.rfind(parts[0], 0, max(text.find(parts[1]), 0))
    texts = []
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        end = start + len(part)
        stop = len(text) if following is None else text.find(following, end)
        if start < 0 or stop < 0:
            return None
        texts.append(text[end:stop])
        start = stop
    return texts


def _between(text: str, start: str, stop: str) -> str:
    """Return the text from the last `start` before the first `stop` on."""
    before = text[: text.find(stop)]
    return before[before.rfind(start) + len(start) :]


def _with_ids(text: str) -> str:
    text = _NOISE.sub("", text)
    for call_id in IDS:
        text = text.replace(call_id, ID)
    return text


def _indexed(first: str, other: str, *, at_start: bool = False) -> tuple[str, str]:
    """Replace the numbers that differ where two texts are otherwise equal at their end."""
    firsts, others = _ATOM.findall(first), _ATOM.findall(other)
    order = range(min(len(firsts), len(others)))
    for index in order if at_start else [-1 - index for index in order]:
        if firsts[index] == others[index]:
            continue
        if not (firsts[index].isdigit() and others[index].isdigit()):
            break
        firsts[index] = others[index] = INDEX
    return "".join(firsts), "".join(others)


def _parts_of(opening: str, between: str, ending: str) -> _Parts:
    """Split the texts around two calls into those that each call has and those of the whole."""
    call_begin = _common_end(opening, between)
    rest = between[: len(between) - len(call_begin)]
    call_end = _common_start(rest, ending)
    return _Parts(
        begin=opening[: len(opening) - len(call_begin)],
        call_begin=call_begin,
        separator=rest[len(call_end) :],
        call_end=call_end,
        end=ending[len(call_end) :],
    )


def _as_format(parts: _Parts, name_end: str, *, allows_several: bool) -> ToolFormat:
    opening = parts.begin + parts.call_begin
    trigger = _trigger_of(opening)
    if trigger and opening.count(trigger) > 1 and len(parts.begin.strip()) > len(trigger):
        trigger = parts.begin.strip()
    # An id after the arguments is the server's, not the model's.
    call_end = re.sub(rf'\s*,\s*"\w+"\s*:\s*"?[{ID}{INDEX}]"?', "", parts.call_end)
    return ToolFormat(
        "learnt",
        trigger=trigger or opening,
        begin=parts.begin,
        call_begin=parts.call_begin,
        name_end=name_end,
        call_end=call_end,
        separator=parts.separator,
        end=parts.end,
        only_at_start=not trigger,
        allows_several=allows_several,
    )


def _trigger_of(opening: str) -> str:
    """Return the mark that the calls begin with; "" if they begin as plain JSON or Python."""
    mark = re.match(r"[^{\"\n<]*<[^<>\s{\"]+>|\[[A-Z_]+\]", opening)
    if mark:
        return mark[0]
    mark = re.match(r"[^\s{\"]*", opening)
    text = mark[0] if mark else ""
    return "" if text.strip("[(") == "" else text


def _common_start(first: str, other: str) -> str:
    """Return the atoms that two texts begin with."""
    length = 0
    for atom, other_atom in zip(_ATOM.findall(first), _ATOM.findall(other), strict=False):
        if atom != other_atom:
            break
        length += len(atom)
    return first[:length]


def _common_end(first: str, other: str) -> str:
    """Return the atoms that two texts end with."""
    length = 0
    atoms = zip(reversed(_ATOM.findall(first)), reversed(_ATOM.findall(other)), strict=False)
    for atom, other_atom in atoms:
        if atom != other_atom:
            break
        length += len(atom)
    return first[len(first) - length :]
