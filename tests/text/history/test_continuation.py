"""Answers that the model continues, with their thoughts."""

from typing import Any

import pytest

from container.text.history.continuation import continued, written
from container.text.message_parser import Reasoning
from container.text.message_style import style_of
from tests.support.chats.chat_templates import TEMPLATES, tokenizer_with

THINK = Reasoning("<think>", "</think>")
USER = {"role": "user", "content": "What is the capital of France?"}


def _continued(name: str, **answer: Any) -> str:
    tokenizer = tokenizer_with(TEMPLATES[name])
    messages = [USER, {"role": "assistant", "content": ""} | answer]
    return continued(tokenizer.render_chat, messages, THINK)


@pytest.mark.parametrize("name", ["any role", "thoughts cut"])
@pytest.mark.parametrize("content", ["The capital of", "The", "It is <b>Paris</b>, \n"])
def test_an_answer_stays_open(name: str, content: str) -> None:
    text = _continued(name, content=content)
    assert text.rstrip().endswith(f"assistant\n{content.rstrip()}")


@pytest.mark.parametrize("name", ["any role", "thoughts cut"])
@pytest.mark.parametrize(
    "content", ["<think>Easy.</think>The capital of", "<think>\nEa", "<think>"]
)
def test_thoughts_in_an_answer_are_kept_and_opened_once(name: str, content: str) -> None:
    text = _continued(name, content=content)
    reply = text.rpartition("<|im_start|>assistant\n")[2]
    assert reply.replace("<think>\n", "<think>") == content.replace("<think>\n", "<think>")


def test_an_answer_may_close_thoughts_of_the_template() -> None:
    text = _continued("thoughts cut", content="Easy.</think>Paris")
    assert text.endswith("assistant\n<think>\nEasy.</think>Paris")


@pytest.mark.parametrize("name", ["any role", "thoughts cut"])
def test_thoughts_beside_an_answer_are_written_before_it(name: str) -> None:
    text = _continued(name, reasoning_content="Easy.", content="The capital of")
    assert text.endswith("assistant\n<think>\nEasy.\n</think>\n\nThe capital of")


@pytest.mark.parametrize("name", ["any role", "thoughts cut"])
def test_a_continued_answer_may_be_in_its_thoughts(name: str) -> None:
    text = _continued(name, reasoning_content="Eas")
    assert text.endswith("assistant\n<think>\nEas")


@pytest.mark.parametrize(
    ("message", "is_thinking"),
    [
        ({"content": "<think>Eas"}, True),
        ({"content": "", "reasoning_content": "Eas"}, True),
        ({"content": "<think>Easy.</think>The"}, False),
        ({"content": "The"}, False),
        ({"content": "The", "reasoning_content": "Easy."}, False),
    ],
)
def test_the_parser_begins_where_the_answer_stopped(
    message: dict[str, Any], is_thinking: bool
) -> None:
    template = TEMPLATES["thoughts cut"]
    style = style_of(template)
    text = _continued("thoughts cut", **message)
    answer = written(message, THINK)
    assert style.starts_in_reasoning(text, answer) == is_thinking
    assert style.parser(text, {}, answer).in_reasoning == is_thinking
