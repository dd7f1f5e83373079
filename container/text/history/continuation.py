"""Prompts that end inside the assistant's last message, which the model continues."""

import contextlib
from collections.abc import Callable
from typing import Any

from container.errors import TemplateFailed
from container.text.history.content import Content, Message, parts_of
from container.text.message_parser import Reasoning

# Renders messages; takes `continues` and `opens_reply` as Tokenizer.render_chat does.
Render = Callable[..., str]


def written(message: Message, reasoning: Reasoning | None) -> str:
    """Return an answer as the model wrote it: thoughts in their marks, then the content.

    An answer without content was cut in its thoughts, so these are left open.
    """
    content = _text(message["content"])
    thoughts = message.get("reasoning_content")
    if reasoning is None or not thoughts:
        return content
    opened = f"{reasoning.open}\n{thoughts.strip()}"
    return f"{opened}\n{reasoning.close}\n\n{content}" if content.strip() else opened


def continued(
    render: Render,
    messages: list[Message],
    reasoning: Reasoning | None,
    *,
    takes_answer: bool = True,
) -> str:
    """Render a chat whose last message, the assistant's, stays open. Raises TemplateFailed.

    Templates cut thoughts out of answers. If something of this one is lost, or the template takes
    no answer at the end, it is written behind the prompt for a reply.
    """
    last, answer = messages[-1], written(messages[-1], reasoning)
    if takes_answer and answer == _text(last["content"]):
        try:
            return render(messages, continues=True)
        except TemplateFailed:
            if len(messages) == 1:
                raise
    elif takes_answer and last["content"]:
        with contextlib.suppress(TemplateFailed):
            text = render(messages, continues=True)
            if last["reasoning_content"].strip() in text:
                return text
    prompt = render(messages[:-1], continues=False, opens_reply=True)
    if reasoning is not None and prompt.rstrip().endswith(reasoning.open):
        answer = answer.lstrip().removeprefix(reasoning.open).lstrip("\n")
    return prompt + answer


def _text(content: Content) -> str:
    parts: list[dict[str, Any]] = parts_of(content)
    return "".join(part["text"] for part in parts if part["type"] == "text")
