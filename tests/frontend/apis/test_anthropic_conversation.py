"""Anthropic's blocks, as the messages that chat templates read, and answers as blocks."""

import time
from typing import Any

import pytest

from container.errors import InvalidParameter, UnsupportedParameter
from container.frontend.apis.anthropic.content_blocks import SIGNATURE, ContentBlocks, arguments_of
from container.frontend.apis.anthropic.conversation import ConversationReader
from container.frontend.apis.anthropic.schema import (
    CountTokensRequest,
    is_messages_body,
    read_tool_use,
)
from container.frontend.chat.conversations import MessageBuilder
from container.frontend.web.request_body import parse
from container.text.message_parser import Delta, DeltaKind

USE = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}
CALL = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
PIXEL = {"type": "base64", "media_type": "image/png", "data": "AAAA"}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def test_very_many_turns_of_one_role_are_joined_in_linear_time() -> None:
    started = time.monotonic()
    text = "x" * 200
    users = _read(*[("user", text)] * 20_000)
    assert len(users.messages[0]["content"]) == 20_000 * 202 - 2
    calls = [{"type": "thinking", "thinking": text}, {"type": "text", "text": text}]
    answers = _read(("user", "a"), *[("assistant", calls)] * 10_000).messages[1]
    assert answers["content"] == answers["reasoning_content"] == text * 10_000
    assert time.monotonic() - started < 10


def _read(*turns: tuple[str, Any], **more: Any) -> ConversationReader:
    messages = [{"role": role, "content": content} for role, content in turns]
    reader, request = ConversationReader(), parse(CountTokensRequest, {"messages": messages} | more)
    reader.read(request.system, request.messages)
    return reader


def test_a_system_prompt_comes_first_without_the_billing_line() -> None:
    system = [_text("x-anthropic-billing-header: cc_version=2"), _text("Be short."), _text(" Now.")]
    assert _read(("user", "hi"), system=system).messages == [
        {"role": "system", "content": "Be short. Now."},
        {"role": "user", "content": "hi"},
    ]


def test_consecutive_messages_of_a_role_are_merged() -> None:
    read = _read(("user", "a"), ("user", [_text("b")]), ("assistant", "c"), ("assistant", [USE]))
    assert read.messages == [
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "c", "tool_calls": [CALL]},
    ]


def test_results_come_before_the_text_beside_them() -> None:
    failed = {"type": "tool_result", "tool_use_id": "t1", "content": "no", "is_error": True}
    empty = {"type": "tool_result", "tool_use_id": "t2"}
    read = _read(("user", "a"), ("assistant", [USE, USE | {"id": "t2"}]),
                 ("user", [failed, empty, _text("b")]))  # fmt: skip
    assert read.messages[2:] == [
        {"role": "tool", "content": "Error: no", "tool_call_id": "t1"},
        {"role": "tool", "content": "", "tool_call_id": "t2"},
        {"role": "user", "content": "b"},
    ]


def test_thoughts_are_reasoning() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": SIGNATURE}
    secret = {"type": "redacted_thinking", "data": "xyz"}
    read = _read(("user", "a"), ("assistant", [thought, secret, _text("b")]), ("user", "c"))
    assert read.messages[1] == {"role": "assistant", "content": "b", "reasoning_content": "hm"}


def test_images_stay_in_order() -> None:
    image = {"type": "image", "source": PIXEL}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [image]}
    read = _read(
        ("user", [_text("a"), image, _text("b")]), ("assistant", [USE]), ("user", [result])
    )
    assert [part["type"] for part in read.messages[0]["content"]] == ["text", "image", "text"]
    assert read.messages[2]["content"] == [{"type": "image"}]
    assert [image.url for image in read.images] == ["data:image/png;base64,AAAA"] * 2


def test_documents_of_text_are_text() -> None:
    plain = {"type": "document", "title": "T", "source": {"type": "text", "data": "body"}}
    blocks = {"type": "document", "source": {"type": "content", "content": [_text("inner")]}}
    assert _read(("user", [plain, blocks])).messages[0]["content"] == "T\nbodyinner"


@pytest.mark.parametrize(
    ("block", "field"),
    [
        ({"type": "server_tool_use"}, "messages[0].content[0].type"),
        ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "content[0].source.type"),
        ({"type": "image"}, "content[0].source.type"),
        ({"type": "text"}, "content[0].text"),
        ({"type": "tool_result", "tool_use_id": "t", "content": 4}, "content[0].content"),
        ({"type": "tool_result"}, "content[0].tool_use_id"),
        ({"type": "tool_result", "tool_use_id": "t", "content": [3]}, "content[0].content[0].type"),
        ({"type": "document"}, "content[0].source.type"),
    ],
)
def test_other_blocks_are_named(block: dict[str, Any], field: str) -> None:
    with pytest.raises((InvalidParameter, UnsupportedParameter)) as refused:
        _read(("user", [block]))
    assert (refused.value.field or "").endswith(field)


def test_thinking_is_off_unless_asked_for() -> None:
    def options(**more: Any) -> dict[str, Any]:
        return parse(CountTokensRequest, {"messages": []} | more).template_options

    assert options() == {"enable_thinking": False, "thinking": False}
    assert options(thinking={"type": "enabled", "budget_tokens": 9})["enable_thinking"] is True
    effort = options(thinking={"type": "adaptive"}, output_config={"effort": "low"})
    assert (effort["reasoning_effort"], effort["thinking"]) == ("low", True)


def test_tools_keep_description_and_schema() -> None:
    schema = {"type": "object", "properties": {}}
    tool = {"name": "f", "description": "d", "input_schema": schema, "cache_control": {}}
    [described] = read_tool_use(
        parse(CountTokensRequest, {"messages": [], "tools": [tool]})
    ).described
    assert described["function"] == {"name": "f", "description": "d", "parameters": schema}


def test_bodies_of_chat_are_not_taken() -> None:
    ask: dict[str, Any] = {"messages": [{"role": "user", "content": [_text("a")]}], "max_tokens": 4}
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert not is_messages_body(ask)
    assert not is_messages_body(ask | {"tools": tools, "tool_choice": {"type": "function"}})
    assert not is_messages_body({"messages": [4, {"content": [4, {"type": {}}]}], "tools": [[]]})
    assert is_messages_body(ask | {"system": "s"})
    assert is_messages_body(ask | {"tool_choice": {"type": "auto"}})
    assert is_messages_body({"messages": [{"role": "assistant", "content": [USE]}]})


def test_thoughts_end_with_a_signature_and_may_be_left_out() -> None:
    for shows in (True, False):
        blocks = ContentBlocks(MessageBuilder(), shows_thinking=shows)
        events = [
            event
            for delta in (Delta(DeltaKind.REASONING, "hm"), Delta(DeltaKind.CONTENT, "a"))
            for event in blocks.take(delta)
        ]
        events += blocks.close()
        assert blocks.blocks == [
            {"type": "thinking", "thinking": "hm" if shows else "", "signature": SIGNATURE},
            {"type": "text", "text": "a"},
        ]
        kinds = [event["delta"]["type"] for event in events if "delta" in event]
        assert kinds == ["thinking_delta"] * shows + ["signature_delta", "text_delta"]


@pytest.mark.parametrize(
    ("text", "value"),
    [('{"a": 1}', {"a": 1}), ('{"a": [1, {"b": "c', {"a": [1, {"b": "c"}]}), ("", {}), ("[1", {})],
)
def test_cut_arguments_are_an_object(text: str, value: dict[str, Any]) -> None:
    assert arguments_of(text) == value
