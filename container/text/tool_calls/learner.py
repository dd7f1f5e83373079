"""Learns how a model writes tool calls by rendering its chat template with probe calls.

The texts between a probe's name, keys and values are the format's fixed texts. A format counts as
learnt only if its parser reads the probes back from what the template rendered.
"""

import functools
import itertools
import re
from dataclasses import dataclass, replace
from typing import Any

from container.text.reasoning import REASONINGS
from container.text.tool_calls.probes import (
    ARGUMENTS,
    ATOM,
    CONTENT,
    IDS,
    NAMES,
    Call,
    Probes,
    Render,
    between,
    common_end,
    common_start,
)
from container.text.tool_calls.read_back import reads_back
from container.text.tool_calls.spans import (
    Span,
    SpanOf,
    find_spans,
    gemma_span,
    json_span,
    pair_span,
    python_span,
)
from container.text.tool_calls.syntax import (
    ID,
    INDEX,
    JSON_TYPES,
    KEY,
    ArgumentStyle,
    PairMarks,
    ToolFormat,
)

# Indentation of a template's source.
_NOISE = re.compile(r"(?<![\n ]) {4,}(?=\S|\n)")


def learn(render: Render) -> ToolFormat | None:
    """Learn the format of a template's calls; None if it writes none that can be learnt."""
    for hides, as_text in itertools.product((False, True), repeat=2):
        form = _Learner(Probes(render, as_text=as_text, hides=hides)).learn()
        if form is not None:
            return form
    return None


def writes_calls(render: Render) -> bool:
    """Whether a template writes the calls of earlier messages at all, not only the tools."""
    return any(
        Probes(render, as_text=as_text, hides=True).assistant_message([(NAMES[0], {})]) is not None
        for as_text in (False, True)
    )


class _Learner:
    """Learns from the probes of one template."""

    def __init__(self, probes: Probes) -> None:
        self._probes = probes

    def learn(self) -> ToolFormat | None:
        """Learn the texts around the calls, then those around the arguments."""
        for learn_arguments in (self._json, self._pairs):
            form = learn_arguments()
            if form is not None and reads_back(form, self._probes):
                return form
        return None

    def _opening(self, calls: list[Call]) -> str:
        """Return the text before the first name, from the start of the calls on."""
        first = calls[0][0]
        with_content = self._probes.assistant_message(calls, CONTENT) or ""
        without_content = self._probes.assistant_message(calls) or ""
        openings = []
        if CONTENT in with_content[: with_content.find(first)]:
            opening = between(with_content, CONTENT, first)
            openings.append(opening[len(common_start(opening, self._probes.after_content())) :])
        before = without_content[: without_content.find(first)]
        opened = (self._probes.opened(), self._probes.before_content())
        length = max(len(common_start(before, text)) for text in opened)
        openings.append(before[length:])
        openings = [_without_thoughts(text) for text in openings]
        return min((text for text in openings if text.strip()), key=len, default="")

    def _ending(self, tail: str, calls: str) -> str:
        """Return the text after the last call without the end of the turn, which no call holds."""
        after = self._probes.after_content()
        tail = tail[: len(tail) - len(common_end(tail, after))]
        marks = [mark for mark in ATOM.findall(after) if len(mark) > 2 and mark not in calls]
        ends = [end for mark in marks if (end := tail.find(mark)) >= 0]
        return tail[: min(ends, default=len(tail))].rstrip()

    def _json(self) -> ToolFormat | None:
        """Learn a format whose arguments are JSON."""
        return self._form(json_span)

    def _pairs(self) -> ToolFormat | None:
        """Learn a format whose arguments are pairs of names and values."""
        probe = {"probe_key": "probevalue", "probe_second": "othervalue"}
        text = self._probes.assistant_message([(NAMES[0], probe)])
        texts = _texts_around(
            text or "", [NAMES[0], *(part for pair in probe.items() for part in pair)]
        )
        if texts is None:
            return None
        before, key_end, _, _, _ = texts
        if before.strip() == "(" and key_end.strip().startswith("="):
            return self._form(python_span, arguments=ArgumentStyle.PYTHON)
        if before.strip() == "{" and key_end.strip().startswith(":"):
            quote = key_end.strip().removeprefix(":").strip()
            return self._form(
                functools.partial(gemma_span, quote), arguments=ArgumentStyle.GEMMA, quote=quote
            )
        marks = self._marks(texts)
        if marks is None:
            return None
        return self._form(
            functools.partial(pair_span, marks), arguments=ArgumentStyle.XML, pairs=marks
        )

    def _marks(self, texts: list[str]) -> PairMarks | None:
        """Split the texts around two pairs into the marks that each has."""
        before, key_end, between, _, after = texts
        between, after = between.replace("probe_key", KEY), after.replace("probe_second", KEY)
        opening = common_end(before, between)
        rest = between[: len(between) - len(opening)]
        close = common_start(rest, after)
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
        text = self._probes.assistant_message([(NAMES[0], {"probe_key": value})]) or ""
        after = text[text.find("probe_key") + len("probe_key") :]
        if not text or after.startswith(default):
            return default
        starts = [match.start() for sign in signs for match in re.finditer(re.escape(sign), after)]
        starts = [start for start in starts if after[:start].endswith(default[-1:])]
        return after[: min(starts)] if starts else default

    def _form(self, span_of: SpanOf, **style: Any) -> ToolFormat | None:
        """Learn the texts around two calls, or around one where the template takes no more."""
        several = list(zip(NAMES, ARGUMENTS, strict=True))
        for calls in (several, several[:1]):
            text = self._probes.assistant_message(calls)
            spans = find_spans(text, calls, span_of) if text else []
            if text and len(spans) == len(calls):
                return replace(self._around(text, spans, calls), **style)
        return None

    def _around(self, text: str, spans: list[Span], calls: list[Call]) -> ToolFormat:
        first, last = spans[0], spans[-1]
        opening = _with_ids(self._opening(calls).lstrip())
        name_end = _with_ids(text[first.name_end : first.start])
        ending = _with_ids(self._ending(text[last.end :], text[first.name_start : last.end]))
        if last is first:
            return _as_format(_Parts("", opening, "", ending, ""), name_end, allows_several=False)
        between = _with_ids(text[first.end : last.name_start])
        index = _first_index(opening + name_end)
        opening, between = _indexed(opening, between)
        other_end = _with_ids(text[last.name_end : last.start])
        name_end, _ = _indexed(name_end, other_end, at_start=True)
        form = _as_format(_parts_of(opening, between, ending), name_end, allows_several=True)
        return replace(form, first_index=index)


@dataclass(frozen=True, slots=True)
class _Parts:
    begin: str
    call_begin: str
    separator: str
    call_end: str
    end: str


# For each JSON type a value, and the texts that it may begin with.
_VALUES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "string": ("probevalue", ("probevalue",)),
    "number": (7, ("7",)),
    "boolean": (True, ("true", "True")),
    "null": (None, ("null", "None")),
    "object": ({"probe_inner": 1}, ("{",)),
    "array": (["probe_item"], ("[",)),
}


def _texts_around(text: str, parts: list[str]) -> list[str] | None:
    """Return the texts after each of some parts in a row; None if one is missing."""
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


def _without_thoughts(opening: str) -> str:
    """Drop the marks of thoughts that a template writes before calls, though there are none."""
    text = opening.lstrip()
    for marks in REASONINGS:
        inner = text.removeprefix(marks.open).lstrip()
        if text.startswith(marks.open) and inner.startswith(marks.close):
            return inner.removeprefix(marks.close)
    return opening


def _with_ids(text: str) -> str:
    text = _NOISE.sub("", text)
    for call_id in IDS:
        text = text.replace(call_id, ID)
    return text


def _indexed(first: str, other: str, *, at_start: bool = False) -> tuple[str, str]:
    """Replace the numbers that differ where two texts are otherwise equal at their end."""
    firsts, others = ATOM.findall(first), ATOM.findall(other)
    order = range(min(len(firsts), len(others)))
    for index in order if at_start else [-1 - index for index in order]:
        if firsts[index] == others[index]:
            continue
        if not (firsts[index].isdigit() and others[index].isdigit()):
            break
        firsts[index] = others[index] = INDEX
    return "".join(firsts), "".join(others)


def _first_index(text: str) -> int:
    numbers = [atom for atom in ATOM.findall(text) if atom.isdigit()]
    return int(numbers[-1]) if numbers else 0


def _parts_of(opening: str, between: str, ending: str) -> _Parts:
    """Split the texts around two calls into those that each call has and those of the whole."""
    call_begin = common_end(opening, between)
    rest = between[: len(between) - len(call_begin)]
    call_end = common_start(rest, ending)
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
