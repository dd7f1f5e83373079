"""Messages that name their recipients (Muse, Functionary 3.2), however the text is cut."""

import json
import random
from typing import Any

import pytest

from container.text.addressed import ADDRESSED, FUNCTIONARY, MUSE, AddressedFormat, AddressedParser
from container.text.delta import DeltaKind
from container.text.message_style import style_of

SCHEMAS: dict[str, dict[str, Any]] = {
    "now": {"properties": {"zone": {"type": "string"}, "n": {"type": "integer"}}},
    "go": {},
}
ARGUMENTS = {"zone": 'a "b"\nc', "n": 3}
MUSE_CALL = (
    'now<|message|><atem:function_calls>\n<atem:invoke name="now">\n<atem:parameter name="zone">'
    'a "b"\nc</atem:parameter>\n<atem:parameter name="n">3</atem:parameter>\n</atem:invoke>\n'
    "</atem:function_calls>"
)
NEXT = "<|eom|><|start|>assistant to="
FUNCTIONARY_CALL = "now\n" + json.dumps(ARGUMENTS)


def _parse(
    form: AddressedFormat, text: str, seed: int, *, continues: bool = False
) -> tuple[str, str, list[tuple[str, str]]]:
    """Return the thoughts, the content and the calls."""
    parser, cuts = AddressedParser(form, SCHEMAS, continues=continues), random.Random(seed)
    deltas = []
    while text:
        length = cuts.randint(1, 7) if seed else len(text)
        deltas += parser.feed(text[:length])
        text = text[length:]
    texts = {DeltaKind.REASONING: "", DeltaKind.CONTENT: ""}
    names: list[str] = []
    arguments: list[str] = []
    for delta in deltas + parser.finish():
        if delta.kind is DeltaKind.CALL:
            names.append(delta.text)
            arguments.append("")
        elif delta.kind is DeltaKind.ARGUMENTS:
            arguments[delta.call_index] += delta.text
        else:
            texts[delta.kind] += delta.text
    calls = list(zip(names, arguments, strict=True))
    return texts[DeltaKind.REASONING], texts[DeltaKind.CONTENT], calls


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("form", "text", "thoughts", "content", "names"),
    [
        (MUSE, " to=user<|message|>Hi <there>!<|eot|>", "", "Hi <there>!", []),
        (MUSE, f" to=self<|message|>Hm <b>{NEXT}user<|message|>Hi", "Hm <b>", "Hi", []),
        (MUSE, f" to={MUSE_CALL}<|eot|>", "", "", ["now"]),
        (MUSE, f" to=self<|message|>Hm{NEXT}{MUSE_CALL}", "Hm", "", ["now"]),
        (MUSE, f" to=user<|message|>Look:{NEXT}{MUSE_CALL}{NEXT}{MUSE_CALL}", "", "Look:",
         ["now", "now"]),
        (MUSE, f" to=user<|message|>Write {MUSE_CALL[14:]}", "", f"Write {MUSE_CALL[14:]}", []),
        (MUSE, "<|message|>Hi", "", "Hi", []),
        (FUNCTIONARY, "all\nHi >>> there\nOslo", "", "Hi >>> there\nOslo", []),
        (FUNCTIONARY, FUNCTIONARY_CALL, "", "", ["now"]),
        (FUNCTIONARY, f"all\nLook:>>>{FUNCTIONARY_CALL}>>>{FUNCTIONARY_CALL}", "", "Look:",
         ["now", "now"]),
        (FUNCTIONARY, "No header\nat all", "", "No header\nat all", []),
        (FUNCTIONARY, "Hi", "", "Hi", []),
    ],
)  # fmt: skip
def test_thoughts_text_and_calls(
    form: AddressedFormat, text: str, thoughts: str, content: str, names: list[str], seed: int
) -> None:
    reasoning, text_read, calls = _parse(form, text, seed)
    assert (reasoning, text_read) == (thoughts, content)
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [
        (name, ARGUMENTS) for name in names
    ]


@pytest.mark.parametrize(
    ("form", "text"),
    [(MUSE, f" to=self<|message|>Hm{NEXT}{MUSE_CALL}"), (FUNCTIONARY, FUNCTIONARY_CALL)],
)
def test_a_cut_call_is_a_part_of_the_call(form: AddressedFormat, text: str) -> None:
    for end in range(len(text)):
        _, content, calls = _parse(form, text[:end], 0)
        assert all(name == "now" for name, _ in calls)
        assert content == "" or (form is FUNCTIONARY and "now".startswith(content.strip()))


def test_an_answer_that_is_continued_has_no_header() -> None:
    assert _parse(FUNCTIONARY, "world!\nWhat now?", 3, continues=True)[1] == "world!\nWhat now?"


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ tools }}<|start|>assistant to=user<|message|><atem:function_calls>", "muse_glimmer"),
        ("{{ tools }}>>>all\n", "functionary_v3.2"),
    ],
)
def test_a_template_is_recognised(template: str, name: str) -> None:
    style = style_of(template)
    assert style.format_name == name
    assert isinstance(style.parser("", {}), AddressedParser)
    assert style_of("{{ tools }}", name).addressed is ADDRESSED[name]
