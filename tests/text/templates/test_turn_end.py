"""The token that ends the assistant's turns, read off what a template renders."""

import pytest

from container.text.templates.turn_end import turn_end
from tests.support.chats.chat_templates import tokenizer_with

CALLS = "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}</tool_call>{% endfor %}"


def _turns(turn: str) -> str:
    return f"{{% for m in messages %}}{turn}{{% endfor %}}"


PLAIN = "<|im_start|>{{ m.role }}\n{{ m.content }}"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (_turns(PLAIN + "<|im_end|>\n"), "<|im_end|>"),
        (_turns(PLAIN + CALLS + "<|im_end|>\n"), "<|im_end|>"),
        (_turns(PLAIN + "<|im_end|><|endoftext|>"), "<|im_end|>"),
        (_turns(PLAIN + "\n"), None),
        # Between text and a call, too, so it does not end the turn.
        (_turns(PLAIN + "<|im_end|>" + CALLS + "<|endoftext|>"), "<|endoftext|>"),
        # Text before a call is dropped, so what stands between them is not known.
        (_turns("{% if m.tool_calls %}" + CALLS + "{% else %}" + PLAIN + "{% endif %}<|im_end|>"),
         None),
        (_turns("<|im_start|>{{ m.reasoning_content }}<|im_end|>{{ m.content }}<|endoftext|>"),
         "<|endoftext|>"),
        ("<|start|><|channel|><|message|>" + _turns(PLAIN + "<|im_end|>"), None),
        ("{{ raise_exception('no') }}", None),
    ],
)  # fmt: skip
def test_the_end_of_a_turn(template: str, end: str | None) -> None:
    tokenizer = tokenizer_with("{% if tools %}{% endif %}" + template)
    ends = turn_end(template, tokenizer.render_probe, tokenizer.special_tokens_in)
    assert list(ends.values()) == ([end] if end else [])
