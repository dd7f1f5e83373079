"""Verifies a learnt format: its parser reads probe calls back from the rendered text."""

import json
from typing import Any

from container.text.delta import DeltaKind
from container.text.tool_calls.calls_parser import CallsParser
from container.text.tool_calls.probes import ARGUMENTS, NAMES, SCHEMA, Call, Probes
from container.text.tool_calls.syntax import ArgumentStyle, ToolFormat

_PROOFS: list[list[Call]] = [
    [(NAMES[0], {"probe_key": 'a "b" <c>', "probe_count": 12}), (NAMES[1], {"probe_key": "x y"})],
    [(NAMES[0], {"probe_key": "line\nline {}", "probe_second": "z"}), (NAMES[1], {})],
]


def reads_back(form: ToolFormat, probes: Probes) -> bool:
    """Whether the parser reads the probes back from the rendered text."""
    if probes.opened().rstrip().endswith(form.trigger):
        return False  # the prompt for a reply would already hold a part of a call
    proofs = _PROOFS
    if form.arguments is ArgumentStyle.PYTHON:  # whose strings some templates do not quote
        proofs = [list(zip(NAMES, ARGUMENTS, strict=True))]
    proofs = proofs if form.allows_several else [calls[:1] for calls in proofs]
    if not any(probes.assistant_message(calls) for calls in proofs[:1]):  # texts are all it takes
        proofs = [[(name, _texts_of(arguments)) for name, arguments in calls] for calls in proofs]
    return all(_reads(form, probes, calls) for calls in proofs)


def _texts_of(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if isinstance(value, str)}


def _reads(form: ToolFormat, probes: Probes, calls: list[Call]) -> bool:
    text = probes.assistant_message(calls)
    if text is None:
        return False
    begin = text.rfind(form.trigger, 0, text.find(calls[0][0]))
    if begin < 0:
        return False
    parser = CallsParser(form, dict.fromkeys(NAMES, SCHEMA))
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
