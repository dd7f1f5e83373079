"""An answer of the server, cut anywhere and parsed, is accepted as history without loss."""

import json
import random
import re
from functools import partial
from typing import Any

import pytest

from container.frontend.apis.openai.tools_schema import read_arguments
from container.frontend.chat.chat_prompts import _write_calls
from container.frontend.chat.conversations import MessageBuilder
from container.text.history.fitting import HistoryFitter
from container.text.message_style import MessageStyle, style_of
from container.text.tool_calls.writer import write_calls
from tests.support.chats.chat_templates import tokenizer_with
from tests.support.chats.mini_templates import CALLS, template_of

Message = dict[str, Any]
THOUGHTS = "{{ '<think>' + m.reasoning_content + '</think>' if m.reasoning_content }}"
ARGUMENTS = [{"kkone": "vvone", "kktwo": ["vvtwo"]}, {"kkone": "vvfour"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "kkone": {"type": "string"},
        "kktwo": {"type": "array", "items": {"type": "string"}},
    },
}
CUTS = 4


def _outputs(style: MessageStyle, family: str) -> list[str]:
    """Return outputs of a model: text, thoughts, calls, and any two of them; whole and cut."""
    thought = "<think>tt</think>" if style.reasoning else ""
    whole = ["wwone wwtwo.", f"{thought}wwone wwtwo."]
    form = style.tool_format
    if form is not None:
        calls = [("get_x", arguments) for arguments in ARGUMENTS]
        written = write_calls(form, calls if form.allows_several else calls[:1])
        whole += [written, thought + written]
        whole += [] if form.only_at_start else [f"wwone.\n{written}"]
    rnd = random.Random(family)
    return whole + [text[: rnd.randint(1, len(text) - 1)] for text in whole for _ in range(CUTS)]


def _parsed(style: MessageStyle, text: str) -> Message:
    """The message that a client gets for an output, and sends back."""
    parser, builder = style.parser("", {"get_x": SCHEMA}), MessageBuilder()
    for delta in parser.feed(text) + parser.finish():
        builder.take(delta)
    message: Message = {"role": "assistant", "content": builder.content}
    if builder.reasoning:
        message["reasoning_content"] = builder.reasoning
    if builder.calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": read_arguments(call.arguments)},
            }
            for call in builder.calls
        ]
    return message


def _words(message: Message) -> list[str]:
    words = re.findall(r"ww[a-z]+", message["content"])
    for call in message.get("tool_calls", []):
        arguments = json.dumps(call["function"]["arguments"])
        words += ["get_x", *re.findall(r"(?:vv|kk)[a-z]+", arguments)]
    return words


@pytest.mark.parametrize("reasoning", ["", THOUGHTS], ids=["plain", "thoughts"])
@pytest.mark.parametrize("family", CALLS)
def test_an_answer_cut_anywhere_is_history(family: str, reasoning: str) -> None:
    template = template_of(CALLS[family], reasoning)
    tokenizer = tokenizer_with(template)
    style = style_of(template, None, tokenizer.render_probe)

    def render(messages: list[Message], tools: Any) -> str:
        opens_reply = messages[-1]["role"] != "assistant"
        return tokenizer.render_chat(
            messages, tools=tools, continues=False, opens_reply=opens_reply
        )

    fitter = HistoryFitter(
        render,
        takes_tools=style.takes_tools,
        takes_calls=style.takes_tools or style.writes_calls,
        write=partial(_write_calls, style.tool_format),
    )
    for text in _outputs(style, family):
        answer = _parsed(style, text)
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": f"rr{index}rr"}
            for index, call in enumerate(answer.get("tool_calls", []))
        ]
        for following in (results, []):
            messages = [{"role": "user", "content": "uuone"}, answer, *following]
            messages.append({"role": "user", "content": "uutwo"})
            rendered = render(fitter.fit(messages, has_tools=True), ())
            expected = ["uuone", "uutwo", *_words(answer), *(r["content"] for r in following)]
            assert [word for word in expected if word not in rendered] == [], (text, answer)
