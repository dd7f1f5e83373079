"""Finds the token with which a chat template ends the assistant's turns."""

from collections.abc import Callable

from container.text import harmony
from container.text.addressed import addressed_in
from container.text.tool_calls.probes import CONTENT, NAMES, Probes, Render

_THOUGHTS = "probethought"


def turn_end(
    template: str, render: Render, special_tokens_in: Callable[[str], dict[int, str]]
) -> dict[int, str]:
    """Return the id and the text of the first special token after a turn's content; {} if unsure.

    A token that may also stand within a turn, as between text and a call, ends nothing.
    """
    if harmony.is_harmony(template) or addressed_in(template) is not None:
        return {}  # a turn has several messages
    probes = Probes(render)
    after = probes.after_content()
    within = _within_turns(probes)
    if within is None:
        return {}
    ends = {
        token_id: text for token_id, text in special_tokens_in(after).items() if text not in within
    }
    first = min(ends, key=lambda token_id: after.find(ends[token_id]), default=None)
    return {} if first is None else {first: ends[first]}


def _within_turns(probes: Probes) -> str | None:
    """Return texts that stand within turns: between thoughts, text and a call.

    None for a template that drops text before a call, so that it does not show what is between.
    """
    texts = []
    fields = dict.fromkeys(("reasoning_content", "reasoning", "thinking"), _THOUGHTS)
    thinking = probes.after_user([{"role": "assistant", "content": CONTENT, **fields}])
    if thinking and _THOUGHTS in thinking and CONTENT in thinking:
        texts.append(thinking[thinking.find(_THOUGHTS) : thinking.find(CONTENT)])
    calling = probes.assistant_message([(NAMES[0], {})], CONTENT)
    if calling is not None:
        start, stop = calling.find(CONTENT), calling.rfind(NAMES[0])
        if not 0 <= start < stop:
            return None
        texts.append(calling[start:stop])
    return "".join(texts)
