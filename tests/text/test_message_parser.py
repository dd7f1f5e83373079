"""From a completion's text to a message, however the text is cut."""

import json
import random

import pytest

from container.settings.requests import TOOL_CALL_PARSERS
from container.text import gemma_arguments
from container.text.delta import PlainParser
from container.text.message_parser import (
    Delta,
    DeltaKind,
    MessageParser,
    Reasoning,
    recognise_reasoning,
)
from container.text.tool_formats import FALLBACK, FORMATS, ToolFormat, recognise

THINK = Reasoning("<think>", "</think>")
CALLS = {
    "gemma": """<start_function_call>call:f{a:<escape>x}"<tool_call><escape>,b:[1,{}]}"""
    """<end_function_call><start_function_call>call:g{}<end_function_call>""",
    "hermes": """<tool_call>
{"name": "f", "arguments": {"a": "x}\\"<tool_call>", "b": [1, {}]}}
</tool_call>
<tool_call>
{"name": "g", "arguments": {}}
</tool_call>""",
    "qwen_xml": """<tool_call>
<function=f>
<parameter=a>
x}\"<tool_call>
</parameter>
<parameter=b>
[1, {}]
</parameter>
</function>
</tool_call>
<tool_call>
<function=g>
</function>
</tool_call>""",
    "llama_json": """{"name": "f", "parameters": {"a": "x}\\"<tool_call>", "b": [1, {}]}}; """
    """{"name": "g", "parameters": {}}""",
    "pythonic": """[f(a="x}\\"<tool_call>", b=[1, {}]), g()]""",
    "mistral_json": """[TOOL_CALLS][{"name": "f", "arguments": {"a": "x}\\"<tool_call>", """
    """"b": [1, {}]}}, {"name": "g", "arguments": {}}]""",
    "mistral": """[TOOL_CALLS]f[ARGS]{"a": "x}\\"<tool_call>", "b": [1, {}]}"""
    """[TOOL_CALLS]g[ARGS]{}""",
    "deepseek_v3": """<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f
```json
{"a": "x}\\"<tool_call>", "b": [1, {}]}
```<｜tool▁call▁end｜>
<｜tool▁call▁begin｜>function<｜tool▁sep｜>g
```json
{}
```<｜tool▁call▁end｜><｜tool▁calls▁end｜>""",
    "deepseek_v31": """<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>"""
    """{"a": "x}\\"<tool_call>", "b": [1, {}]}<｜tool▁call▁end｜><｜tool▁call▁begin｜>g"""
    """<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>""",
}
ARGUMENTS = {"a": 'x}"<tool_call>', "b": [1, {}]}
SCHEMAS = {"f": {"properties": {"a": {"type": "string"}, "b": {"type": "array"}}}, "g": {}}


def _parse(parser: MessageParser, text: str, seed: int) -> list[Delta]:
    """Feed the text in pieces; join the deltas that follow each other."""
    cuts = random.Random(seed)
    deltas: list[Delta] = []
    while text:
        length = cuts.randint(1, 7) if seed else len(text)
        deltas += parser.feed(text[:length])
        text = text[length:]
    joined: list[Delta] = []
    for delta in deltas + parser.finish():
        last = joined[-1] if joined else None
        if last and (last.kind, last.call_index) == (delta.kind, delta.call_index):
            joined[-1] = Delta(delta.kind, last.text + delta.text, delta.call_index)
        else:
            joined.append(delta)
    return joined


def _texts_of(deltas: list[Delta], kind: DeltaKind) -> list[str]:
    return [delta.text for delta in deltas if delta.kind is kind]


def test_every_format_is_tested() -> None:
    assert CALLS.keys() == set(TOOL_CALL_PARSERS)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("seed", range(6))
def test_calls_of_every_format(name: str, seed: int) -> None:
    parser = MessageParser(None, FORMATS[name], schemas=SCHEMAS)
    deltas = _parse(parser, CALLS[name], seed)
    assert _texts_of(deltas, DeltaKind.CALL) == ["f", "g"]
    first, second = map(json.loads, _texts_of(deltas, DeltaKind.ARGUMENTS))
    assert first == ARGUMENTS
    assert second == {}
    assert {delta.call_index for delta in deltas} == {0, 1}
    assert _texts_of(deltas, DeltaKind.CONTENT) == []


@pytest.mark.parametrize("name", [name for name in CALLS if not FORMATS[name].only_at_start])
@pytest.mark.parametrize("seed", range(4))
def test_text_and_reasoning_before_calls(name: str, seed: int) -> None:
    text = "<think>\nLet me see. <b>\n</think>\n\nI < you [look]:\n" + CALLS[name]
    deltas = _parse(MessageParser(THINK, FORMATS[name], schemas=SCHEMAS), text, seed)
    assert _texts_of(deltas, DeltaKind.REASONING) == ["Let me see. <b>"]
    assert _texts_of(deltas, DeltaKind.CONTENT) == ["I < you [look]:"]
    assert _texts_of(deltas, DeltaKind.CALL) == ["f", "g"]


@pytest.mark.parametrize("tools", [None, *(FORMATS[name] for name in CALLS)])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("text", ["  Hello\n\nyou <too and [TOOL_ ", "{ not a call }", "", " \n"])
def test_text_alone_stays_as_it_is(tools: ToolFormat | None, text: str, seed: int) -> None:
    deltas = _parse(MessageParser(None, tools), text, seed)
    assert deltas == ([Delta(DeltaKind.CONTENT, text)] if text else [])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("text", "starts", "reasoning", "content"),
    [
        ("<think>a</think>b", False, ["a"], ["b"]),
        ("\n<think>\n\n</think>\n\nb ", False, [], ["b "]),
        ("a\nb\n</think>\n\nc\n", True, ["a\nb"], ["c\n"]),
        ("no thoughts", False, [], ["no thoughts"]),
        ("<thin air", False, [], ["<thin air"]),
        ("cut in the middle </th", True, ["cut in the middle </th"], []),
        ("<think>a</think>b</think>c", False, ["a"], ["b</think>c"]),
    ],
)
def test_reasoning(
    text: str, starts: bool, reasoning: list[str], content: list[str], seed: int
) -> None:
    parser = MessageParser(THINK, None, starts_in_reasoning=starts)
    deltas = _parse(parser, text, seed)
    assert _texts_of(deltas, DeltaKind.REASONING) == reasoning
    assert _texts_of(deltas, DeltaKind.CONTENT) == content


@pytest.mark.parametrize("name", CALLS)
def test_a_truncated_call_parses_to_its_text(name: str) -> None:
    whole = CALLS[name]
    for end in range(len(whole)):
        parser = MessageParser(None, FORMATS[name], schemas=SCHEMAS)
        deltas = _parse(parser, whole[:end], 3)
        names = _texts_of(deltas, DeltaKind.CALL)
        assert names == ["f", "g"][: len(names)]
        arguments = _texts_of(deltas, DeltaKind.ARGUMENTS)
        assert len(arguments) <= len(names)
        if FORMATS[name].arguments.value == "json" and arguments:
            assert arguments[0] in whole


def test_plain_text_costs_nothing() -> None:
    parser = PlainParser()
    assert parser.feed("<think>") == [Delta(DeltaKind.CONTENT, "<think>")]
    assert parser.feed("") == parser.finish() == []


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ tools }} <tool_call>", "hermes"),
        ("{{ tools }} <tool_call><function=", "qwen_xml"),
        ("{{ tools }} [TOOL_CALLS]", "mistral_json"),
        ("{{ tools }} [TOOL_CALLS] [ARGS]", "mistral"),
        ("{{ tools }} <｜tool▁calls▁begin｜> ```json", "deepseek_v3"),
        ("{{ tools }} <｜tool▁calls▁begin｜>", "deepseek_v31"),
        ("{{ tools }} <start_function_call>call:", "gemma"),
        ("{{ tools }} [func_name1(params)]", "pythonic"),
        ('{{ tools }} {"name": n, "parameters": {}}', "llama_json"),
        ("{{ tools }}", FALLBACK.name),
        ("{{ messages }} <tool_call>", None),
    ],
)
def test_a_format_is_recognised_by_its_template(template: str, name: str | None) -> None:
    recognised = recognise(template)
    assert (recognised.name if recognised else None) == name


def test_reasoning_is_recognised_by_its_template() -> None:
    assert recognise_reasoning("... '</think>' in content ...") == THINK
    assert recognise_reasoning("{{ messages }}") is None


def test_gemmas_nested_arguments() -> None:
    text = "a:{b:<escape>x,}<escape>,c:[1.5,<escape>y<escape>]},d:true,e:null,f:word"
    assert gemma_arguments.read(text) == {
        "a": {"b": "x,}", "c": [1.5, "y"]}, "d": True, "e": None, "f": "word"
    }  # fmt: skip
    for broken in ("a", "a:<escape>x", "a:{b:1", "a:[1", "a:1}"):
        with pytest.raises(ValueError, match=r"\w"):
            gemma_arguments.read(broken)


@pytest.mark.parametrize("key", ["a b", "", "a:b", 'q"}{,[', "x<y", "back\\slash", "größe"])
def test_keys_with_signs_of_gemmas_form_are_read_back(key: str) -> None:
    arguments = {"n": {key: "v"}, key: [{key: 1}]}
    assert gemma_arguments.read(gemma_arguments.write(arguments)[1:-1]) == arguments
