"""The format of tool calls and the marks of reasoning, learnt from what a template renders."""

import json
import random
from typing import Any

import pytest

from container.settings.requests import TOOL_CALL_PARSERS
from container.text.message_parser import DeltaKind, MessageParser
from container.text.message_style import style_of
from container.text.tool_calls.syntax import ToolFormat
from container.text.tool_calls.writer import write_calls
from container.text.tool_formats import FORMATS, format_named, recognise
from tests.support.chats.mini_templates import CALLS, renderer, template_of

# Formats without examples in test_message_parser.
OTHERS = [name for name in FORMATS if name not in TOOL_CALL_PARSERS]
SCHEMA = {
    "properties": {"text": {"type": "string"}, "n": {"type": "integer"}, "list": {"type": "array"}}
}
CONVERSATIONS: list[list[tuple[str, dict[str, Any]]]] = [
    [("get_weather", {"text": 'a "quoted" <b>\nline', "n": -3, "list": [1, "x", None]})],
    [("get_weather", {"text": "{x}, [y]", "n": 7}), ("now", {}), ("now", {"text": "12"})],
]
USER = {"role": "user", "content": "Hi"}


def _parse(
    form: ToolFormat, text: str, seed: int = 0
) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    parser = MessageParser(None, form, schemas={"get_weather": SCHEMA, "now": SCHEMA})
    cuts, deltas = random.Random(seed), []
    while text:
        length = cuts.randint(1, 7) if seed else len(text)
        deltas += parser.feed(text[:length])
        text = text[length:]
    content, names, arguments = "", [], {}
    for delta in deltas + parser.finish():
        if delta.kind is DeltaKind.CALL:
            names.append(delta.text)
            arguments[delta.call_index] = ""
        elif delta.kind is DeltaKind.ARGUMENTS:
            arguments[delta.call_index] += delta.text
        else:
            content += delta.text
    return content, [(name, json.loads(arguments[index])) for index, name in enumerate(names)]


def _turn(template: str, calls: list[tuple[str, dict[str, Any]]], *, as_text: bool) -> str:
    """Return the template's text of a reply with calls, from the reply's start on."""
    written = [
        {
            "id": f"call0000{index}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(args) if as_text else args},
        }
        for index, (name, args) in enumerate(calls)
    ]
    reply = {"role": "assistant", "content": "", "tool_calls": written}
    return renderer(template)([USER, reply]).partition("<|a|>")[2]


@pytest.mark.parametrize("family", CALLS)
def test_rendered_calls_are_parsed_back(family: str) -> None:
    template = template_of(CALLS[family])
    form = recognise(template, renderer(template))
    assert form is not None
    for calls in CONVERSATIONS:
        some = calls if form.allows_several else calls[:1]
        text = _turn(template, some, as_text=family == "arguments as text")
        for seed in range(4):
            assert _parse(form, text, seed) == ("", some)
        if not form.only_at_start:
            content, parsed = _parse(form, f"Let me see.\n{text}", 5)
            assert (content, parsed) == ("Let me see.", some)


@pytest.mark.parametrize("family", CALLS)
def test_a_learnt_format_writes_like_the_template(family: str) -> None:
    template = template_of(CALLS[family])
    form = recognise(template, renderer(template))
    assert form is not None
    call = [("get_weather", {"text": "x", "n": 1})]
    written = write_calls(form, call)
    rendered = _turn(template, call, as_text=family == "arguments as text")
    without_ids = rendered.replace("call00000", "call00001").replace(', "id": "call00001"', "")
    if family == "python":  # which has two forms of quotes
        written = written.replace("'", '"')
    assert written.strip() == without_ids.removesuffix("<|end|>").strip()


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("seed", range(3))
def test_formats_written_by_hand_are_parsed_however_they_are_cut(name: str, seed: int) -> None:
    form = FORMATS[name]
    for calls in CONVERSATIONS:
        assert _parse(form, write_calls(form, calls), seed) == ("", calls)


@pytest.mark.parametrize("name", OTHERS)
def test_a_call_cut_anywhere_is_a_partial_call(name: str) -> None:
    form = FORMATS[name]
    whole = write_calls(form, [("now", {"text": "noon", "n": 5})])
    triggered = whole.index(form.trigger) + len(form.trigger)
    named = whole.index("now") + len("now" + form.name_end)
    for end in range(triggered, len(whole)):
        parser = MessageParser(None, form, schemas={"now": SCHEMA})
        deltas = parser.feed(whole[:end]) + parser.finish()
        if end >= named:
            assert [d.text for d in deltas if d.kind is DeltaKind.CALL] == ["now"]
        if end >= named or not form.only_at_start:
            assert not [d for d in deltas if d.kind is DeltaKind.CONTENT]
        partial = "".join(d.text for d in deltas if d.kind is DeltaKind.ARGUMENTS)
        assert '{"text": "noon", "n": 5}'.startswith(partial.rstrip("}"))


USERS_TURN = "{{ '<|u|>' + m.content + '<|end|>' }}"
LISTED = "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}"
TEXTS_ONLY = (
    "{%- for c in m.tool_calls -%}{{ '<fn=' + c.function.name + '>' }}"
    "{%- for k, v in c.function.arguments.items() -%}{{ '<par=' + k + '>' + v + '</par>' }}"
    "{%- endfor -%}</fn>{%- endfor -%}"
)
ODD_TEMPLATES = {
    "empty thoughts before calls": template_of(
        "{{ '<think>\\n\\n</think>\\n\\n' }}" + CALLS["name and index in marks"]
    ),
    "tools behind the user's text": template_of(CALLS["one call only"]).replace(
        USERS_TURN, USERS_TURN + LISTED
    ),
    "another opening than the prompt's": template_of(CALLS["objects in tags"]).replace(
        "add_generation_prompt -%}{{ '<|a|>' }}", "add_generation_prompt -%}{{ '<|b|>' }}"
    ),
    "texts only": template_of(TEXTS_ONLY),
}


@pytest.mark.parametrize("name", ODD_TEMPLATES)
def test_odd_templates_are_learnt(name: str) -> None:
    template = ODD_TEMPLATES[name]
    form = recognise(template, renderer(template))
    assert form is not None
    calls = [("get_weather", {"text": 'a "b" <c>'})]
    text = _turn(template, calls, as_text=False)
    text = text.removeprefix("<think>\n\n</think>\n\n")
    for seed in range(4):
        assert _parse(form, text, seed) == ("", calls)
        assert _parse(form, f"Let me see.\n{text}", seed) == ("Let me see.", calls)


def test_marks_around_the_text_before_calls_are_no_content() -> None:
    template = template_of("{{ '<|/text|>' }}" + CALLS["bare object"]).replace(
        "{{ m.content or '' }}", "{{ '<|text|>' if m.tool_calls }}{{ m.content or '' }}"
    )
    style = style_of(template, None, renderer(template))
    assert style.content_marks == ("<|text|>",)
    parser = style.parser("", {"now": SCHEMA})
    text = '<|text|>Let me see.<|/text|>{"name": "now", "parameters": {}}'
    deltas = parser.feed(text) + parser.finish()
    assert [d.text for d in deltas if d.kind is DeltaKind.CONTENT] == ["Let me see."]


@pytest.mark.parametrize(
    ("template", "tokens", "name"),
    [
        ("{{ tools }} use <seed:tool_call><function=f>", (), "seed_oss"),
        ("{{ tools }} use <|START_ACTION|>", (), "cohere_command4"),
        ('{{ tools }} use <tool_calls>\n{"name": "f"}\n</tool_calls>', (), "minimax_m1"),
        ("{{ tools }} use <tool_calls>[]</tool_calls>", (), "hunyuan_a13b"),
        ("{{ tools }}", ("<|tool_call_start|>", "<|tool_call_end|>"), "lfm2"),
        ("{{ tools }}", ("<|im_end|>",), "unknown"),
        ("{{ messages }}", ("<|tool_call_start|>",), "llama_json"),
    ],
)
def test_formats_are_recognised_by_marks_and_tokens(
    template: str, tokens: tuple[str, ...], name: str
) -> None:
    def render(messages: list[dict[str, Any]], tools: object = (), **_: object) -> str:
        return messages[0]["content"] + (json.dumps(tools) if takes_tools else "")

    takes_tools = "tools" in template

    assert style_of(template, None, render, frozenset(tokens)).format_name == name


def test_an_unknown_format_is_reported() -> None:
    """Each text is written in an order, or twice, that no description here has."""
    for calls in (
        "{% for c in m.tool_calls %}{{ c.function.arguments | tojson }} -> {{ c.function.name }}"
        "{% endfor %}",
        "{% for c in m.tool_calls %}I call {{ c.function.name }} with "
        "{{ c.function.arguments | length }} arguments{% endfor %}",
    ):
        template = template_of(calls)
        style = style_of(template, None, renderer(template))
        assert style.tool_format is None
        assert style.format_name == "unknown"
        assert style.format_of_calls(must_call=True) is not None
    template = template_of("<call>{{ m.tool_calls[0].function.name }}")
    assert style_of(template, "hermes", renderer(template)).format_name == "hermes"


THINKING = "{% if m.reasoning_content %}{{ 'OPEN' + m.reasoning_content + 'CLOSE' }}{% endif %}"


@pytest.mark.parametrize(
    ("opened", "closed"),
    [("<ponder>\\n", "\\n</ponder>\\n"), ("<|think|>", "<|/think|>"), ("<|ch>idea\\n", "<ch|>")],
)
def test_reasoning_marks_are_learnt(opened: str, closed: str) -> None:
    written = THINKING.replace("OPEN", opened).replace("CLOSE", closed)
    template = template_of(CALLS["objects in tags"], written)
    style = style_of(template, None, renderer(template))
    assert style.reasoning is not None
    marks = (style.reasoning.open, style.reasoning.close)
    assert marks == (opened.replace("\\n", "\n").strip(), closed.replace("\\n", "\n").strip())


def test_marks_that_the_prompt_opens_are_learnt() -> None:
    written = THINKING.replace("OPEN", "<|start_think|>").replace("CLOSE", "<|end_think|>")
    template = (
        template_of(CALLS["objects in tags"], written).replace(
            "{{ '<|a|>' }}{%- endif", "{{ '<|a|><|start_think|>' }}{%- endif"
        )
        + "{# of '</think>' #}"
    )
    style = style_of(template, None, renderer(template))
    assert style.reasoning is not None
    assert (style.reasoning.open, style.reasoning.close) == ("<|start_think|>", "<|end_think|>")


def test_marks_around_content_are_left_out() -> None:
    template = template_of(CALLS["list in tags"], THINKING.replace("OPEN", "<|t|>")).replace(
        "CLOSE", "<|/t|>"
    )
    template = template.replace("{{ m.content or '' }}", "{{ '<|say|>' + m.content + '<|/say|>' }}")
    style = style_of(template, None, renderer(template))
    parser = style.parser("", {"now": {}})
    deltas = parser.feed("<|t|>Hm.<|/t|><|say|>It is noon.<|/say|>") + parser.finish()
    assert [(d.kind, d.text) for d in deltas] == [
        (DeltaKind.REASONING, "Hm."),
        (DeltaKind.CONTENT, "It is noon."),
    ]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("end", "is_call"), [("", True), ("\nDone.", True), ("</think>No.", False)]
)
def test_a_call_in_reasoning_that_is_never_closed_is_a_call(
    end: str, is_call: bool, seed: int
) -> None:
    template = template_of(CALLS["objects in tags"], "{% if false %}<think></think>{% endif %}")
    style = style_of(template, None, renderer(template))
    text = '<think>I call it.\n<call>\n{"name": "now", "arguments": {}}\n</call>' + end
    parser, cuts, deltas = style.parser("", {"now": {}}), random.Random(seed), []
    while text:
        length = cuts.randint(1, 9)
        deltas += parser.feed(text[:length])
        text = text[length:]
    deltas += parser.finish()
    assert ("now" in [d.text for d in deltas if d.kind is DeltaKind.CALL]) is is_call
    reasoning = "".join(d.text for d in deltas if d.kind is DeltaKind.REASONING)
    assert reasoning.startswith("I call it.")
    assert ("<call>" in reasoning) is not is_call


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name":"now","arguments":{"n":1}}</tool_call>',
        '<tool_call>\n\n {"arguments": {"n":1}, "id": "7", "name": "now"}\n</tool_call>',
        '<tool_call>{"name": "now", "arguments": "{\\"n\\": 1}"}</tool_call>',
        '<tool_call>{"type": "function", "function": {"name": "now", "arguments": {"n": 1}}}',
    ],
)
def test_white_space_and_the_order_of_keys_may_differ(text: str) -> None:
    form = recognise("{{ tools }} <tool_call>")
    assert form is not None
    for seed in range(4):
        assert _parse(form, text, seed) == ("", [("now", {"n": 1})])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen_xml", "<function=now>\n<parameter=n>\n1\n</parameter>\n</function>\n</tool_call>"),
        ("kimi_k2", '<|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{"n": 1}'),
        ("gemma4", "<|tool_call>:now{n:1}<tool_call|>"),
        (
            "step3",
            "<｜tool_calls_begin｜><｜tool_call_begin｜>function<｜tool_sep｜>"
            '<steptml:invoke name="now"><steptml:parameter name="n">1</steptml:parameter>'
            "</steptml:invoke><｜tool_call_end｜><｜tool_calls_end｜>",
        ),
        (
            "dots",
            '<dots_function_call>\n<invoke name="now">\n<parameter name="n">1</parameter>\n'
            "</invoke>\n</dots_function_call>",
        ),
        ("inkling", '<|content_invoke_tool_json|>{"name":"now","args":{"n":1}}<|end_message|>'),
        (
            "deepseek_v41",
            '<｜DSML｜ calls>\n<｜DSML｜ invoke name="now">\n<｜DSML｜ parameter '
            'name="n" string="false">1</｜DSML｜ parameter>\n</｜DSML｜ invoke>\n</｜DSML｜ calls>',
        ),
        ("llama_json", '<|python_tag|>{"name": "now", "parameters": {"n": 1}}'),
        ("phi4_mini_json", 'functools[{"name": "now", "arguments": {"n": 1}}]'),
    ],
)
def test_marks_may_be_missing_or_others(name: str, text: str) -> None:
    for seed in range(4):
        assert _parse(format_named(name), text, seed) == ("", [("now", {"n": 1})])


NOW = '"name": "now", "parameters": {"n": 1}'
XLAM = '[{"name": "now", "arguments": {"n": 1}}]'


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("llama_json", "Here it is:", f" {{{NOW}}} Anything else?"),
        ("llama_json", "Here:\n```", f"\n{{\n  {NOW}\n}}\n```"),
        ("llama_json", "<think>Hm.</think>", f"\n\n{{{NOW}}}"),
        ("pythonic", "<think>Hm.</think>", "[now(n=1)]"),
        ("xlam", "<think>Hm.</think>", XLAM),
        ("xlam", "I will look:", f" {XLAM}"),
        ("gigachat3", "Look.", f"<|message_sep|>\n\nfunction call<|role_sep|>\n{XLAM[1:-1]}"),
    ],
)
def test_calls_may_stand_behind_text(name: str, before: str, after: str) -> None:
    for seed in range(6):
        content, calls = _parse(format_named(name), before + after, seed)
        assert (content.strip(), calls) == (before, [("now", {"n": 1})])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("llama_json", 'Say {"name": "nobody", "parameters": {"n": 1}} or {"name": "Ann"}.'),
        ("llama_json", 'Say {"name": "now'),
        ("pythonic", "<think>Hm.</think>\n[now] is the word"),
        ("xlam", 'The list is [{"name": "Ann"}, {"name": "Bob"}].'),
    ],
)
def test_text_that_looks_like_a_call_stays_text(name: str, text: str) -> None:
    for seed in range(6):
        assert _parse(format_named(name), text, seed) == (text, [])


def test_stray_call_marks_before_and_after_a_call() -> None:
    form = format_named("gemma4")
    broken, whole = (
        "<|tool_call>now without braces<tool_call|>",
        "<|tool_call>call:now{}<tool_call|>",
    )
    for seed in range(4):
        assert _parse(form, broken + whole, seed) == (broken, [("now", {})])
        assert _parse(form, whole + broken + whole, seed) == ("", [("now", {}), ("now", {})])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["gemma", "gemma4"])
def test_strings_of_json_within_gemmas_arguments_do_not_end_them(name: str, seed: int) -> None:
    form = FORMATS[name]
    written = write_calls(form, [("now", {"n": 7}), ("now", {"n": 8})])
    for value in ('["a}", 1]', '[\n "{{", "\\"}" ]', '{"x y": "}}", "z": [{"b": "]"}]}'):
        text = written.replace("7", value)
        assert _parse(form, text, seed) == (
            "",
            [("now", {"n": json.loads(value)}), ("now", {"n": 8})],
        )
    one = f'{form.quote}a "quoted}} text{form.quote}'
    calls = [("now", {"n": 'a "quoted} text'}), ("now", {"n": 8})]
    assert _parse(form, written.replace("7", one), seed) == ("", calls)
