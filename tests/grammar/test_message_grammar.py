"""Whatever a model would say, a message under a grammar has the shape that was asked for."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from container.errors import InvalidParameter
from container.grammar.forms import schema_answer
from container.grammar.message import message_grammar
from container.grammar.shape import MessageShape, Tool, encode_shape
from container.settings.requests import TOOL_CALL_PARSERS
from container.text.harmony import HarmonyParser
from container.text.message_parser import DeltaKind, MessageParser, Reasoning
from container.text.tool_formats import FORMATS
from tests.support.models.babbler import Babbler
from tests.support.servers import DEMO_MODEL

THINK = Reasoning("<think>", "</think>")
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12, "pattern": "^[A-Za-z ]*$"},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "places": {"$ref": "#/$defs/places"},
    },
    "required": ["unit", "days"],
    "additionalProperties": False,
    "$defs": {"places": {"type": "array", "items": {"enum": ["sea", "hill"]}, "maxItems": 2}},
}
NOW: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS = (Tool("get_weather", WEATHER), Tool("now", NOW))
SCHEMAS = {tool.name: tool.parameters for tool in TOOLS}
MARKERS = [
    "[TOOL_CALLS]", "[ARGS]", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "</think>", "<start_function_call>",
    "<end_function_call>", "<escape>",
]  # fmt: skip


@pytest.fixture(scope="module", params=["tokens", "text"])
def babbler(request: pytest.FixtureRequest) -> Iterator[Babbler]:
    """A vocabulary in which the markers are tokens, and one in which most are spelled out."""
    babbler = Babbler(DEMO_MODEL, special=MARKERS if request.param == "tokens" else [])
    yield babbler
    babbler.close()


def _generate(babbler: Babbler, shape: MessageShape, seed: int) -> str | None:
    return babbler.say(babbler.compile(shape), seed, max_tokens=700)


def _parse(shape: MessageShape, text: str) -> tuple[str, str, list[tuple[str, Any]]]:
    parser = MessageParser(
        shape.reasoning,
        shape.tool_format,
        starts_in_reasoning=shape.starts_in_reasoning,
        schemas=SCHEMAS,
    )
    deltas = parser.feed(text) + parser.finish()
    names = [delta.text for delta in deltas if delta.kind is DeltaKind.CALL]
    arguments = ["" for _ in names]
    for delta in deltas:
        if delta.kind is DeltaKind.ARGUMENTS:
            arguments[delta.call_index] += delta.text
    joined = {
        kind: "".join(delta.text for delta in deltas if delta.kind is kind)
        for kind in (DeltaKind.REASONING, DeltaKind.CONTENT)
    }
    calls = [(name, json.loads(parsed)) for name, parsed in zip(names, arguments, strict=True)]
    return joined[DeltaKind.REASONING], joined[DeltaKind.CONTENT], calls


@pytest.mark.parametrize("name", TOOL_CALL_PARSERS)
def test_a_required_call_is_made_and_its_arguments_are_valid(babbler: Babbler, name: str) -> None:
    shape = MessageShape(tool_format=FORMATS[name], tools=TOOLS, needs_call=True)
    finished = 0
    for seed in range(12):
        text = _generate(babbler, shape, seed)
        if text is None:
            continue
        finished += 1
        _, content, calls = _parse(shape, text)
        assert calls, text
        assert not content, text
        for called, arguments in calls:
            jsonschema.validate(arguments, SCHEMAS[called])
    assert finished > 3


@pytest.mark.parametrize("name", TOOL_CALL_PARSERS)
def test_one_call_only_where_no_more_are_allowed(babbler: Babbler, name: str) -> None:
    shape = MessageShape(
        tool_format=FORMATS[name], tools=TOOLS[1:], needs_call=True, allows_several=False
    )
    for seed in range(4):
        text = _generate(babbler, shape, seed)
        assert text is not None
        assert _parse(shape, text) == ("", "", [("now", {})])


@pytest.mark.parametrize("name", TOOL_CALL_PARSERS)
@pytest.mark.parametrize("reasoning", [None, THINK])
def test_a_call_that_has_begun_is_followed_and_text_is_free(
    babbler: Babbler, name: str, reasoning: Reasoning | None
) -> None:
    form = FORMATS[name]
    shape = MessageShape(tool_format=form, tools=TOOLS, reasoning=reasoning)
    thoughts = "<think>well {</think>\n\n" if reasoning else ""
    for start in (thoughts + "Hello you", thoughts + "a [b] {c}"):
        _accept(babbler, shape, start, ends=True)
    preamble = "" if form.only_at_start else "Hello "
    begun = thoughts + preamble + form.begin + form.call_begin
    _accept(babbler, shape, f"{begun}now{form.name_end}", ends=False)
    constraint = babbler.compile(shape)
    errors = [babbler.accept(constraint, token_id) for token_id in babbler.encode(f"{begun}other")]
    assert errors[-1], "a call of an unknown tool"


def _accept(babbler: Babbler, shape: MessageShape, text: str, *, ends: bool) -> None:
    constraint = babbler.compile(shape)
    for token_id in babbler.encode(text):
        error = babbler.accept(constraint, token_id)
        token = babbler.tokenizer.decode([token_id], skip_special_tokens=False)
        assert error is None, (text, token, error)
    assert bool(babbler.accept(constraint, 2)) is not ends


@pytest.mark.parametrize("starts", [True, False])
def test_an_answer_after_reasoning_is_valid(babbler: Babbler, starts: bool) -> None:
    shape = MessageShape(
        reasoning=THINK, starts_in_reasoning=starts, answer=schema_answer(WEATHER, "f")
    )
    start = "thoughts</think>\n" if starts else "<think>thoughts</think>\n"
    for seed in range(4):
        constraint = babbler.compile(shape)
        for token_id in babbler.encode(start):
            assert babbler.accept(constraint, token_id) is None
        text = babbler.say(constraint, seed)
        assert text is not None
        reasoning, content, _ = _parse(shape, start + text)
        assert reasoning == "thoughts"
        jsonschema.validate(json.loads(content), WEATHER)


def test_an_answer_or_a_call(babbler: Babbler) -> None:
    answer = schema_answer(NOW, "f")
    shape = MessageShape(tool_format=FORMATS["hermes"], tools=TOOLS, answer=answer)
    kinds = set()
    for seed in range(12):
        text = _generate(babbler, shape, seed)
        assert text is not None
        _, content, calls = _parse(shape, text)
        assert bool(content) != bool(calls)
        kinds.add(bool(calls))
    assert False in kinds


def test_no_grammar_without_tools_and_response_format() -> None:
    assert encode_shape(MessageShape(reasoning=THINK)) == ""


def test_a_tool_that_cannot_be_followed() -> None:
    odd = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    shape = MessageShape(tool_format=FORMATS["hermes"], tools=(Tool("f", odd, is_strict=True),))
    with pytest.raises(InvalidParameter, match=r"tools\[0\].function.parameters.*uniqueItems"):
        message_grammar(shape, {})
    loose = MessageShape(tool_format=FORMATS["hermes"], tools=(Tool("f", odd),))
    assert "uniqueItems" not in message_grammar(loose, {})
    broken = {"type": "object", "properties": {"a": {"type": "x"}}}
    with pytest.raises(InvalidParameter, match=r"Invalid type.*at /properties/a"):
        message_grammar(MessageShape(tool_format=FORMATS["hermes"], tools=(Tool("f", broken),)), {})


HARMONY = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>"]


@pytest.fixture(scope="module")
def harmonist() -> Iterator[Babbler]:
    babbler = Babbler(DEMO_MODEL, special=HARMONY)
    yield babbler
    babbler.close()


def _generate_harmony(
    harmonist: Babbler, shape: MessageShape, seed: int
) -> dict[DeltaKind, str] | None:
    text = harmonist.say(harmonist.compile(shape), seed, max_tokens=900)
    if text is None:
        return None
    parser = HarmonyParser()
    parsed: dict[DeltaKind, str] = {}
    for delta in parser.feed(text) + parser.finish():
        parsed[delta.kind] = parsed.get(delta.kind, "") + delta.text
    return parsed


@pytest.mark.slow
def test_harmony_calls_and_answers_are_valid(harmonist: Babbler) -> None:
    forced = MessageShape(is_harmony=True, tools=TOOLS, needs_call=True)
    answer = MessageShape(is_harmony=True, answer=schema_answer(WEATHER, "f"))
    finished = 0
    for seed in range(16):
        parsed = _generate_harmony(harmonist, forced, seed)
        if parsed is not None:
            finished += 1
            called = parsed[DeltaKind.CALL]
            jsonschema.validate(json.loads(parsed[DeltaKind.ARGUMENTS]), SCHEMAS[called])
        parsed = _generate_harmony(harmonist, answer, seed)
        if parsed is not None:
            finished += 1
            assert DeltaKind.CALL not in parsed
            jsonschema.validate(json.loads(parsed[DeltaKind.CONTENT]), WEATHER)
    assert finished > 4


def test_harmony_leaves_the_choice_to_the_model(harmonist: Babbler) -> None:
    shape = MessageShape(is_harmony=True, tools=TOOLS)
    thoughts = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    _accept(harmonist, shape, f"{thoughts}<|channel|>final<|message|>It is noon.", ends=True)
    call = "<|channel|>commentary to=functions.now <|constrain|>json<|message|>{"
    _accept(harmonist, shape, thoughts + call, ends=False)
    assert encode_shape(MessageShape(is_harmony=True)) == ""
