"""gpt-oss's messages in channels, however the text is cut."""

import random

import pytest

from container.text.harmony import HarmonyParser, is_harmony
from container.text.message_parser import Delta, DeltaKind
from container.text.message_style import style_of

ANALYSIS = "<|channel|>analysis<|message|>Let me < see.<|end|><|start|>assistant"
CALL = '<|channel|>commentary to=functions.get_time <|constrain|>json<|message|>{"zone": "<|"}'
OTHER_HEADER = ' to=functions.get_time<|channel|>commentary json<|message|>{"zone": "<|"}'
FINAL = "<|channel|>final<|message|>It is noon."


def _parse(text: str, seed: int) -> list[tuple[DeltaKind, str]]:
    parser, cuts = HarmonyParser(), random.Random(seed)
    deltas: list[Delta] = []
    while text:
        length = cuts.randint(1, 9) if seed else len(text)
        deltas += parser.feed(text[:length])
        text = text[length:]
    parsed: dict[tuple[DeltaKind, int], str] = {}
    for delta in deltas + parser.finish():
        key = (delta.kind, delta.call_index)
        parsed[key] = parsed.get(key, "") + delta.text
    return [(kind, text) for (kind, _), text in parsed.items()]


@pytest.mark.parametrize("seed", range(8))
def test_analysis_and_final_text(seed: int) -> None:
    assert _parse(ANALYSIS + FINAL, seed) == [
        (DeltaKind.REASONING, "Let me < see."),
        (DeltaKind.CONTENT, "It is noon."),
    ]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("call", [CALL, OTHER_HEADER])
def test_analysis_and_a_call(call: str, seed: int) -> None:
    for end in ("", "<|call|>"):
        assert _parse(ANALYSIS + call + end, seed) == [
            (DeltaKind.REASONING, "Let me < see."),
            (DeltaKind.CALL, "get_time"),
            (DeltaKind.ARGUMENTS, '{"zone": "<|"}'),
        ]


def test_a_truncated_message_parses_to_its_text() -> None:
    whole = ANALYSIS + CALL
    for end in range(len(whole)):
        parsed = dict(_parse(whole[:end], 3))
        thoughts = parsed.get(DeltaKind.REASONING, "")
        assert "Let me < see.<|end|>".startswith(thoughts)
        assert DeltaKind.CONTENT not in parsed


def test_a_template_is_recognised() -> None:
    style = style_of("{{ tools }} <|start|>assistant<|channel|>final<|message|>")
    assert style.is_harmony
    assert isinstance(style.parser("", {}), HarmonyParser)
    assert not is_harmony("<|im_start|>")
