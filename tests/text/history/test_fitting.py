"""No template loses a message, call or result; answers of the server are accepted."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container.errors import TemplateFailed
from container.text.history.content import is_empty
from container.text.history.fitting import HistoryFitter
from container.text.tokenizer import Tokenizer
from tests.support.chats.chat_templates import TEMPLATES, tokenizer_with

Message = dict[str, Any]
USER: Message = {"role": "user", "content": "What is it like?"}


def _fitter(tokenizer: Tokenizer, *, takes_tools: bool = True) -> HistoryFitter:
    def render(messages: list[Message], tools: Any) -> str:
        opens_reply = messages[-1]["role"] != "assistant"
        return tokenizer.render_chat(
            messages, tools=tools, continues=False, opens_reply=opens_reply
        )

    return HistoryFitter(render, takes_tools=takes_tools)


FITTED: dict[str, tuple[Tokenizer, HistoryFitter]] = {}
for _name, _template in TEMPLATES.items():
    _tokenizer = tokenizer_with(_template)
    FITTED[_name] = _tokenizer, _fitter(_tokenizer, takes_tools="tools" in _template)


def _rendered(name: str, messages: list[Message]) -> str:
    tokenizer, fitter = FITTED[name]
    return tokenizer.render_chat(fitter.fit(messages, has_tools=False), continues=False)


def _call(call_id: str, arguments: Any, name: str = "weather") -> dict[str, Any]:
    return {
        "id": call_id, "type": "function", "function": {"name": name, "arguments": arguments},
    }  # fmt: skip


def _asked(text: str, *calls: dict[str, Any]) -> list[Message]:
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": f"sunny {index}"}
        for index, call in enumerate(calls)
    ]
    return [USER, {"role": "assistant", "content": text, "tool_calls": list(calls)}, *results]


def _texts(messages: list[Message]) -> list[str]:
    """Return all texts of a conversation."""
    texts = []
    for message in messages:
        texts.append(message["content"].strip())
        for call in message.get("tool_calls", []):
            texts.append(call["function"]["name"])
            arguments = call["function"]["arguments"]
            words = arguments if isinstance(arguments, dict) else json.loads(arguments + '"}')
            texts += [*words, *words.values()]
    return [text for text in texts if text]


@st.composite
def _conversations(draw: st.DrawFn) -> list[Message]:
    """Any messages in any order, each text another one."""
    numbers = iter(range(1000))
    messages: list[Message] = []
    kinds = st.sampled_from(["system", "developer", "user", "assistant", "calls", "critic"])
    for kind in draw(st.lists(kinds, min_size=1, max_size=7)):
        text = draw(st.sampled_from(["", f"text{next(numbers)}x"]))
        if kind != "calls":
            is_answer = kind == "assistant"
            content = text if is_answer else f"text{next(numbers)}x"
            messages.append({"role": kind, "content": content})
            continue
        calls = []
        for _ in range(draw(st.integers(1, 3))):
            key, value = f"key{next(numbers)}x", f"value{next(numbers)}x"
            arguments = draw(st.sampled_from([{}, {key: value}, f'{{"{key}": "{value}']))
            calls.append(_call(f"call_{next(numbers)}", arguments, f"name{next(numbers)}x"))
        messages.append({"role": "assistant", "content": text, "tool_calls": calls})
        if draw(st.booleans()):
            messages += [
                {"role": "tool", "tool_call_id": call["id"], "content": f"text{next(numbers)}x"}
                for call in calls
            ]
    return messages


@pytest.mark.parametrize("name", FITTED)
@settings(max_examples=40, deadline=None)
@given(messages=_conversations())
def test_nothing_is_lost(name: str, messages: list[Message]) -> None:
    last = messages[-1]
    is_answer = last["role"] == "assistant"
    if is_answer and (name == "the last message" or is_empty(last)):
        messages = [*messages, USER]
    text = _rendered(name, messages)
    assert [word for word in _texts(messages) if word not in text] == []


CALLS = (_call("call_0", {"city": "Malmö"}), _call("call_1", '{"city": "Osl'))


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize("following", ["nothing", "an answer", "a question"])
@pytest.mark.parametrize("text", ["", "Let me look. "])
def test_calls_of_ours_are_accepted_as_history(name: str, following: str, text: str) -> None:
    messages = _asked(text, *CALLS)
    if following == "an answer":
        messages += [{"role": "assistant", "content": "It is sunny."}, USER]
    elif following == "a question":
        messages += [USER]
    rendered = _rendered(name, messages)
    for word in (text.strip(), "Malmö", "Osl", "sunny 0", "sunny 1"):
        assert word in rendered
    assert "\\u" not in rendered


def test_conversations_that_a_template_accepts_are_unchanged() -> None:
    tokenizer = tokenizer_with(TEMPLATES["known roles, calls instead of text"])
    messages = [{"role": "system", "content": "s"}, *_asked("", _call("a", {"b": "c"})), USER]
    fitted = _fitter(tokenizer).fit(messages, has_tools=True)
    assert fitted[:2] == messages[:2]
    assert fitted[3] == {"name": "weather"} | messages[3]


@pytest.mark.parametrize(
    ("name", "is_known"),
    [("a developer", True), ("any role", False), ("known roles, calls instead of text", False)],
)
def test_a_developer_is_the_system_unless_the_template_knows_one(name: str, is_known: bool) -> None:
    """Not by the word in the template: one that prints any role's name knows none."""
    _, fitter = FITTED[name]
    [first, _] = fitter.fit([{"role": "developer", "content": "be brief"}, USER], has_tools=False)
    assert first["role"] == ("developer" if is_known else "system")


def test_calls_keep_to_one_message_each_with_its_result() -> None:
    _, fitter = FITTED["one call"]
    calls = [_call("call_0", {"city": "Malmö"}), _call("call_1", {"city": "Oslo"})]
    fitted = fitter.fit(_asked("", *calls), has_tools=False)
    assert [message["role"] for message in fitted] == [
        "user", "assistant", "tool", "assistant", "tool",
    ]  # fmt: skip
    assert [message["content"] for message in fitted[2::2]] == ["sunny 0", "sunny 1"]


def test_rewritten_call_ids_still_match() -> None:
    _, fitter = FITTED["ids of nine, turns alternate"]
    _, calls, *results = fitter.fit(_asked("", *CALLS), has_tools=False)
    ids = [call["id"] for call in calls["tool_calls"]]
    assert [len(call_id) for call_id in ids] == [9, 9]
    assert [result["tool_call_id"] for result in results] == ids
    own = _asked("", _call("abcdefgh1", {"a": "b"}))
    assert fitter.fit(own, has_tools=False)[1] == own[1]


def test_a_name_that_the_template_drops_goes_into_the_id() -> None:
    text = _rendered("ids only", _asked("", *CALLS))
    assert '<call>functions.weather:1 {"city": "Osl</call>' in text


def test_values_are_texts_where_the_template_joins_them() -> None:
    call = _call("call_0", {"cities": ["Malmö"], "n": 2})
    text = _rendered("arguments as texts only", _asked("", call))
    assert '<call>weather<cities>["Malmö"]<n>2' in text
    cut = _call("call_0", '{"cities": ["Malm')
    assert '<cities>["Malm"]' in _rendered("arguments as texts only", _asked("", cut))


def test_as_many_results_as_calls_are_tried() -> None:
    messages = [{"role": "system", "content": "s"}] * 5
    calls = [_call(f"call_{index}", {}, f"name{index}x") for index in range(3)]
    text = _rendered("ids of nine, turns alternate", [*messages, *_asked("", *calls)[1:]])
    assert all(f"name{index}x" in text for index in range(3))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("arguments joined", '<call>weather {"city": "Osl</call>'),
        ("arguments printed", '<call>weather {"city": "Malmö"}</call>'),
        ("arguments one by one", "<parameter=city>Osl</parameter>"),
        ("one call", '{"name": "weather", "parameters": {"city": "Osl"}}'),
        ("any role", '{"name": "weather", "parameters": {"city": "Malmö"}}'),
    ],
)
def test_arguments_have_the_form_that_the_template_writes(name: str, expected: str) -> None:
    assert expected in _rendered(name, _asked("", *CALLS))


def test_results_are_joined_in_one_turn_where_turns_alternate() -> None:
    _, fitter = FITTED["no system, turns alternate"]
    fitted = fitter.fit(_asked("", *CALLS), has_tools=False)
    assert [message["role"] for message in fitted] == ["user", "assistant", "user"]


def test_missing_ids_and_names_are_filled_in() -> None:
    _, fitter = FITTED["results with names"]
    call = {"type": "function", "function": {"name": "weather", "arguments": {"a": "b"}}}
    messages = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "sunny"},
    ]
    fitted = fitter.fit(messages, has_tools=False)
    assert fitted[2]["tool_call_id"] == fitted[1]["tool_calls"][0]["id"]
    assert fitted[2]["name"] == "weather"


def test_images_stay_where_they_are() -> None:
    _, fitter = FITTED["no system, turns alternate"]
    image = {"type": "image"}
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [image, {"type": "text", "text": "this?"}]},
    ]
    [message] = fitter.fit(messages, has_tools=False)
    assert image in message["content"]
    assert [part["text"] for part in message["content"] if part != image] == [
        "be brief",
        "\n\n",
        "this?",
    ]


def test_a_template_without_user_text_is_refused() -> None:
    with pytest.raises(TemplateFailed, match="leaves out a part of a message with role 'user'"):
        _fitter(tokenizer_with("{{ messages | length }}")).fit([USER], has_tools=False)


def test_a_template_that_rewrites_texts_is_unchanged() -> None:
    fitter = _fitter(tokenizer_with("{% for m in messages %}{{ m.content | upper }}{% endfor %}"))
    assert fitter.fit([USER], has_tools=False) == [USER]


def test_rounds_that_repeat_are_tried_once() -> None:
    tokenizer = tokenizer_with(TEMPLATES["any role"])
    num_rendered = 0

    def render(messages: list[Message], tools: Any) -> str:
        nonlocal num_rendered
        num_rendered += 1
        assert len(messages) < 12, "the same rounds again"
        return tokenizer.render_chat(messages, tools=tools, continues=False)

    fitter = HistoryFitter(render, takes_tools=True)
    turn = [USER, {"role": "assistant", "content": "It is sunny."}]
    for length in (2, 5, 40, 190):
        fitter.fit([*turn * length, USER], has_tools=False)
    assert num_rendered <= 4


def test_long_conversations_are_fitted_in_bounded_time() -> None:
    """Sixty renderings of at most 64 messages, and no text is copied once for each message."""
    tokenizer = tokenizer_with(TEMPLATES["no system, turns alternate"])
    num_messages = 0

    def render(messages: list[Message], tools: Any) -> str:
        nonlocal num_messages
        num_messages += len(messages)
        return tokenizer.render_chat(messages, tools=tools, continues=False)

    turns = [
        {
            "role": "user" if str(number * number)[-1] in "149" else "assistant",
            "content": f"t{number}x",
        }
        for number in range(30_000)
    ]
    fitted = HistoryFitter(render, takes_tools=True).fit(turns, has_tools=False)
    assert num_messages < 60 * 64
    text = "\n".join(message["content"] for message in fitted)
    assert all(turn["content"] in text for turn in turns[::997])
