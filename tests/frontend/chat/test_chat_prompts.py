"""Prompts of chats over several templates, without a server."""

from collections.abc import Sequence
from typing import Any, cast

import pytest

from container.errors import InvalidParameter
from container.frontend.chat.chat_prompts import ChatPrompt, ChatPrompts
from container.frontend.chat.tools import ToolMode, ToolUse
from container.frontend.generation.prompts import Prompts
from container.images.sources import ImageSource
from container.text.tokenizer import Tokenizer
from tests.support.chats.chat_templates import TEMPLATES, tokenizer_with

USER = {"role": "user", "content": "What is it like in Malmö?"}
TOOLS = ToolUse(
    ToolMode.AUTO,
    described=[{"type": "function", "function": {"name": "weather", "description": "今天的天气"}}],
)
CALL = {
    "id": "a", "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Malmö"}},
}  # fmt: skip


class TextPrompts:
    """The part of Prompts that chats need: a tokenizer, for a model without images."""

    is_multimodal = False

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def check_images(self, images: Sequence[ImageSource]) -> None:
        assert not images


def _render(
    name: str, messages: list[dict[str, Any]], tool_format: str | None = None, **fields: Any
) -> str:
    prompts = cast(Prompts, TextPrompts(tokenizer_with(TEMPLATES[name])))
    text, _ = ChatPrompts(prompts, tool_format).render(ChatPrompt(messages, **fields))
    return text


def test_tools_are_described_with_their_own_letters() -> None:
    text = _render("any role", [USER], tools=TOOLS)
    assert "今天的天气" in text
    assert text.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("first", [[], [USER]])
def test_tools_are_not_described_inside_of_an_answer(first: list[dict[str, Any]]) -> None:
    text = _render("any role", [*first, {"role": "assistant", "content": "It"}], tools=TOOLS)
    assert "今天的天气" in text
    assert text.endswith("assistant\nIt")


def test_an_answer_is_continued_where_a_template_drops_answers() -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}>"
    )
    prompts = ChatPrompts(cast(Prompts, TextPrompts(tokenizer_with(template))))
    answer = {"role": "assistant", "content": "It is"}
    for thoughts in ({}, {"reasoning_content": "Rain?"}):
        text, _ = prompts.render(ChatPrompt([USER, answer | thoughts]))
        assert text == f"{USER['content']}>It is"


def test_tools_are_described_where_the_template_loses_them() -> None:
    template = "{% if tools and documents %}{{ tools }}{% endif %}" + TEMPLATES["any role"]
    prompts = ChatPrompts(cast(Prompts, TextPrompts(tokenizer_with(template))))
    text, _ = prompts.render(ChatPrompt([USER], tools=TOOLS))
    assert "今天的天气" in text


def test_text_beside_calls_survives_in_text_form() -> None:
    answer = {"role": "assistant", "content": "I look.", "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "a", "content": "sunny"}
    text = _render("any role", [USER, answer, result])
    assert 'I look.\n\n{"name": "weather", "parameters": {"city": "Malmö"}}' in text
    assert "user\nThe function's result: sunny" in text


def test_an_answer_with_calls_is_whole_and_cannot_be_continued() -> None:
    messages = [USER, {"role": "assistant", "content": "I look.", "tool_calls": [CALL]}]
    assert "weather" in _render("arguments joined", messages)
    with pytest.raises(InvalidParameter, match="cannot continue a message with `tool_calls`"):
        _render("arguments joined", messages, continues=True)


def test_dropped_calls_are_written_in_the_models_format() -> None:
    messages = [USER, {"role": "assistant", "content": "I look.", "tool_calls": [CALL]}]
    text = _render("tools but no calls", messages, tool_format="hermes")
    assert 'I look.\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Malmö"}}' in text
