"""Whatever a grammar of calls allows is parsed to valid calls, in every style of arguments."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from container.grammar.forms import schema_answer
from container.grammar.message import message_grammar
from container.grammar.shape import MessageShape, Tool
from container.settings.requests import TOOL_CALL_PARSERS
from container.text.addressed import ADDRESSED, AddressedParser
from container.text.message_parser import DeltaKind, MessageParser, Reasoning
from container.text.tool_calls.syntax import ToolFormat
from container.text.tool_calls.writer import write_calls
from container.text.tool_formats import FORMATS, recognise
from tests.support.chats.mini_templates import CALLS, renderer, template_of
from tests.support.chats.tool_schemas import COUNT, schemas

SHORT = {"type": "string", "maxLength": 5}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}


def _object(properties: dict[str, Any], *required: str, **keywords: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), **keywords}


NODE = _object({"v": DIGIT, "kids": {"type": "array", "items": {"$ref": "#/$defs/n"}}}, "v")
NODE["additionalProperties"] = False
PAIR = _object({"b": SHORT, "c": DIGIT}, "b", additionalProperties=False)
FEW = {"type": "array", "items": SHORT, "minItems": 1, "maxItems": 2}
MAYBE = {"anyOf": [SHORT, {"type": "null"}]}
SCHEMAS: dict[str, dict[str, Any]] = {
    "const": _object({"a": {"const": "x y"}, "b": {"const": 3}, "c": {"const": None}}, "a", "b"),
    "enum": _object({"a": {"enum": ["p<q", "r\ns"]}, "b": {"enum": [1, None, "1"]}}, "a", "b"),
    "anyOf": {"type": "object", "anyOf": [_object({"a": SHORT}, "a"), _object({"b": DIGIT}, "b")]},
    "allOf": _object({"a": SHORT}, allOf=[{"required": ["a"]}, _object({"b": DIGIT}, "b")]),
    "$ref": {
        "$ref": "#/$defs/p",
        "$defs": {"p": _object({"a": {"$ref": "#/$defs/q"}}), "q": DIGIT},
    },
    "minProperties": _object({"a": {"type": "boolean"}, "b": {"type": "null"}}, minProperties=2),
    "dependentRequired": _object({"a": DIGIT, "b": DIGIT}, dependentRequired={"a": ["b"]}),
    "a name outside": _object({"a": DIGIT}, "b", additionalProperties=DIGIT),
    "odd names": _object({"first name": SHORT, "from": DIGIT, "x-y": DIGIT}, "first name", "from"),
    "nullable": _object({"a": {"type": ["string", "null"], "maxLength": 4}, "b": MAYBE}, "a", "b"),
    "two types": _object({"a": {"type": ["string", "integer"], "maximum": 9, "minimum": 0}}, "a"),
    "nested": _object({"a": PAIR, "d": FEW}, "a", "d"),
    "recursive": _object({"a": {"$ref": "#/$defs/n"}}, "a", **{"$defs": {"n": NODE}}),
    "format": _object({"a": {"type": "string", "format": "date"}}, "a"),
    "pattern": _object({"a": {"type": "string", "pattern": "^[a-c]{2,3}$"}}, "a"),
    "true": _object({"a": True, "b": {}}, "a"),
    "nothing": {"type": "object"},
}
OTHERS = [name for name in FORMATS if name not in TOOL_CALL_PARSERS]
STYLES = ["qwen_xml", "glm47", "kimi_k3", "minimax_m3", "pythonic", "gemma", "apertus"]
BYTES = LLTokenizer("byte")
END = BYTES.eos_token


def _generate(grammar: str, seed: int) -> str | None:
    """Bytes at random, those that close something more often; None if there are too many."""
    matcher, random = LLMatcher(BYTES, grammar), np.random.default_rng(seed)
    assert not matcher.is_error(), matcher.get_error()
    mask, generated = allocate_token_bitmask(1, BYTES.vocab_size), b""
    for _ in range(900):
        fill_next_token_bitmask(matcher, mask)
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        plain = [t for t in allowed if 32 <= t < 127 or t in (10, END)]
        weights = np.array([6.0 if chr(t) in '"}]<' or t == END else 1.0 for t in plain or allowed])
        token_id = int(random.choice(plain or allowed, p=weights / weights.sum()))
        assert matcher.consume_token(token_id)
        generated += b"" if token_id == END else bytes([token_id])
        if token_id == END or matcher.is_stopped():
            return generated.decode(errors="replace")
    return None


def _called(form: ToolFormat, text: str, schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    parser = MessageParser(None, form, schemas={"call_it": schema})
    deltas = parser.feed(text) + parser.finish()
    kinds = {delta.kind for delta in deltas}
    assert kinds <= {DeltaKind.CALL, DeltaKind.ARGUMENTS}, text
    arguments = [delta for delta in deltas if delta.kind is DeltaKind.ARGUMENTS]
    for index, delta in enumerate(d for d in deltas if d.kind is DeltaKind.CALL):
        assert delta.text == "call_it"
        yield json.loads("".join(d.text for d in arguments if d.call_index == index))


@pytest.mark.slow
@pytest.mark.parametrize("format_name", STYLES)
@pytest.mark.parametrize("keyword", SCHEMAS)
def test_arguments_hold_the_keyword_in_every_style(format_name: str, keyword: str) -> None:
    schema = SCHEMAS[keyword]
    shape = MessageShape(
        tool_format=FORMATS[format_name], tools=(Tool("call_it", schema),), needs_call=True
    )
    grammar = message_grammar(shape, {})
    for seed in range(2):
        text = _generate(grammar, seed)
        if text is not None:
            called = list(_called(FORMATS[format_name], text, schema))
            assert called
            for arguments in called:
                jsonschema.validate(arguments, schema)


@pytest.mark.parametrize("format_name", OTHERS)
def test_every_format_written_by_hand_has_a_grammar(format_name: str) -> None:
    schema = _object({"a": SHORT, "b": DIGIT}, "a")
    shape = MessageShape(
        tool_format=FORMATS[format_name], tools=(Tool("call_it", schema),), needs_call=True
    )
    text = _generate(message_grammar(shape, {}), 1)
    if text is not None:
        for arguments in _called(FORMATS[format_name], text, schema):
            jsonschema.validate(arguments, schema)


@pytest.mark.parametrize("name", ADDRESSED)
@pytest.mark.parametrize("keyword", SCHEMAS)
def test_a_message_to_a_function_holds_the_keyword(name: str, keyword: str) -> None:
    schema = SCHEMAS[keyword]
    shape = MessageShape(
        addressed=ADDRESSED[name], tools=(Tool("call_it", schema),), needs_call=True
    )
    text = _generate(message_grammar(shape, {}), 1)
    if text is None:
        return
    parser = AddressedParser(ADDRESSED[name], {"call_it": schema})
    arguments: dict[int, str] = {}
    for delta in parser.feed(text) + parser.finish():
        if delta.kind is DeltaKind.ARGUMENTS:
            arguments[delta.call_index] = arguments.get(delta.call_index, "") + delta.text
    assert arguments, text
    for written in arguments.values():
        jsonschema.validate(json.loads(written), schema)


@pytest.mark.parametrize("name", ADDRESSED)
def test_a_message_may_be_for_the_user(name: str) -> None:
    form = ADDRESSED[name]
    user = f"{form.first}{form.users[0]}{form.header_end}Hi"
    shape = MessageShape(addressed=form, tools=(Tool("call_it", {}),))
    assert _is_allowed(message_grammar(shape, {}), user)
    nobody = f"{form.first}nobody{form.header_end}Hi"
    assert not _is_allowed(message_grammar(shape, {}), nobody)
    answer = MessageShape(addressed=form, answer=schema_answer({"type": "object"}, "f"))
    assert not _is_allowed(message_grammar(answer, {}), user)
    assert _is_allowed(message_grammar(answer, {}), user[:-2] + "{}")


def _is_allowed(grammar: str, text: str) -> bool:
    matcher = LLMatcher(BYTES, grammar)
    return all(map(matcher.consume_token, text.encode())) and matcher.is_accepting()


@pytest.mark.parametrize("reasoning", [None, Reasoning("<think>", "</think>")])
@pytest.mark.parametrize("format_name", ["llama_json", "xlam", "pythonic", "phi4_mini_json"])
def test_text_may_begin_like_a_call(format_name: str, reasoning: Reasoning | None) -> None:
    shape = MessageShape(
        tool_format=FORMATS[format_name], tools=(Tool("call_it", {}),), reasoning=reasoning
    )
    grammar = message_grammar(shape, {})
    for text in ('{"city": "Paris"}', "{ x }", "[1, 2]", '["a"]', "[Here](x)", "Hello", ""):
        assert _is_allowed(grammar, text), text
    called = (
        "[nobody(a=1)]" if format_name == "pythonic" else FORMATS[format_name].trigger + "nobody"
    )
    assert not _is_allowed(grammar, called)


def test_a_mark_of_text_and_tokens_ends_at_its_token() -> None:
    """Text before the token is free; a lazy rule of the whole mark would never meet the token."""
    form = FORMATS["kimi_k3"]
    tokens = {"<|open|>": 5, "<|sep|>": 6, "<|close|>": 7}
    shape = MessageShape(tool_format=form, tools=(Tool("call_it", {"type": "object"}),))
    grammar = message_grammar(shape, tokens)
    assert r'/(.|\n)*/ <[5]> "tools"' in grammar
    assert '"|>' not in grammar


LEARNT = {
    f"learnt: {family}": recognise(template_of(calls), renderer(template_of(calls)))
    for family, calls in CALLS.items()
}
EVERY = {name: form for name, form in (FORMATS | LEARNT).items() if form is not None}


@pytest.mark.parametrize(("index", "name"), [*enumerate(EVERY)])
def test_random_schemas_round_trip_in_every_format(index: int, name: str) -> None:
    """Each format has two of the fifty schemas; together the formats have all of them."""
    form = EVERY[name]
    for schema in schemas()[index % (COUNT // 2) :: COUNT // 2]:
        shape = MessageShape(tool_format=form, tools=(Tool("call_it", schema),), needs_call=True)
        text = _generate(message_grammar(shape, {}), index)
        if text is None:
            continue
        called = list(_called(form, text, schema))
        assert called, text
        for arguments in called:
            jsonschema.validate(arguments, schema)
            written = write_calls(form, [("call_it", arguments)])
            assert [*_called(form, written, schema)] == [arguments], written
