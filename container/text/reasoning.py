"""The marks around a model's reasoning and its content, learnt from its chat template."""

import re
from dataclasses import dataclass
from typing import Any

from container.text.tool_calls.probes import (
    CONTENT,
    NAMES,
    Probes,
    Render,
    common_end,
    common_start,
)

_MARK = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")
THOUGHTS = "probethoughts"
# The fields that templates read reasoning from.
_FIELDS = ("reasoning_content", "reasoning", "thinking", "tool_plan", "thoughts")


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The marks around a model's reasoning."""

    open: str
    close: str


REASONINGS = [
    Reasoning("<think>", "</think>"),
    Reasoning("[THINK]", "[/THINK]"),
    Reasoning("<seed:think>", "</seed:think>"),
    Reasoning("<mm:think>", "</mm:think>"),
    Reasoning("<|channel>thought", "<channel|>"),
    Reasoning("<|START_THINKING|>", "<|END_THINKING|>"),
    Reasoning("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    Reasoning("<|inner_prefix|>", "<|inner_suffix|>"),
    Reasoning("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
]

# Marks that models leave in their content.
_STRAY_MARKS = {
    Reasoning("<|channel>thought", "<channel|>"): (
        "<|channel>thought\n",
        "<|channel>",
        "<channel|>",
    )
}


def recognise_reasoning(template: str, render: Render | None = None) -> Reasoning | None:
    """Find the reasoning marks that a chat template uses; None if it uses none.

    With `render`, they are read off a rendered message; a template that omits the reasoning of
    earlier messages is recognised by marks in it.
    """
    learnt = learn_reasoning(render) if render is not None else None
    return learnt or next((marks for marks in REASONINGS if marks.close in template), None)


def learn_reasoning(render: Render) -> Reasoning | None:
    """Learn the marks from a message with reasoning; None if the template does not write it."""
    probes = Probes(render)
    plain = _around_reasoning(probes, with_calls=False)
    if plain is None:
        return None
    before, after = plain
    after = after[: after.find(CONTENT)] if CONTENT in after else after
    around_with_calls = _around_reasoning(probes, with_calls=True)
    if around_with_calls is not None:
        after = common_start(after, around_with_calls[1]) or after
    close = _close_mark(after)
    known = next((marks for marks in REASONINGS if _ends_with(before, marks.open)), None)
    if known is not None and known.close.startswith(close):
        return known
    opened = _open_mark(before[len(common_start(before, probes.opened())) :])
    if not opened:  # the prompt for a reply opens the reasoning already
        opened = _last_mark(before)
        words = re.findall(r"[^\W_]+", opened)
        opened = opened if any(word in close for word in words) else ""
    return Reasoning(opened, close) if opened and close else None


def learn_content_marks(
    render: Render, reasoning: Reasoning | None, trigger: str
) -> tuple[str, ...]:
    """Learn the texts around content that are not content, of models that mark it, too.

    `trigger` is the mark that calls begin with.
    """
    if reasoning is not None and reasoning in _STRAY_MARKS:
        return _STRAY_MARKS[reasoning]
    probes = Probes(render)
    thinking, calling = (
        _around_reasoning(probes, with_calls=with_calls) for with_calls in (False, True)
    )
    before = (probes.assistant_message([], CONTENT) or "").partition(CONTENT)[0]
    openings = [before[len(common_start(before, probes.opened())) :]]
    text, _, call = (probes.assistant_message([(NAMES[0], {})], CONTENT) or "").partition(CONTENT)
    if NAMES[0] in call:
        openings.append(text[len(common_start(text, probes.opened())) :])
    if thinking is not None and CONTENT in thinking[1]:
        openings.append(thinking[1].partition(CONTENT)[0])
    if calling is not None and trigger and trigger in calling[1]:
        openings.append(calling[1].partition(trigger)[0])
    if reasoning is not None:
        openings = [opening.rpartition(reasoning.close)[2] for opening in openings]
    marks = {opening.strip() for opening in openings if _MARK.search(opening)}
    if not marks:
        return ()
    after = probes.after_content()
    calls = probes.assistant_message([(NAMES[0], {})]) or ""
    close = after[: len(after) - len(common_end(after, calls))].strip()
    ends = {tags[-1] for mark in marks if (tags := _MARK.findall(mark))}
    following = after[after.find(close) + len(close) :]
    close += next((end for end in ends if following.startswith(end)), "") if close else ""
    # The end of the turn, which is hidden only if it is one special token.
    tail = after[after.find(close) + len(close) :].strip()
    ending = tail[: tail.rfind("<")] if close and tail.count("<") > 1 else ""
    return tuple(sorted(filter(None, marks | {close, ending}), key=len, reverse=True))


def _around_reasoning(probes: Probes, *, with_calls: bool) -> tuple[str, str] | None:
    """Render a turn with reasoning; return the text before and after it."""
    contents: list[Any] = [CONTENT if not with_calls else ""]
    fields: dict[str, Any] = dict.fromkeys(_FIELDS, THOUGHTS)
    if with_calls:
        function = {"name": NAMES[0], "arguments": {}}
        fields["tool_calls"] = [{"id": "prbid0001", "type": "function", "function": function}]
    parts = [{"type": "thinking", "thinking": THOUGHTS}, {"type": "text", "text": CONTENT}]
    for content, extra in ((contents[0], fields), (parts, {})):
        text = probes.after_user([{"role": "assistant", "content": content, **extra}])
        if text and THOUGHTS in text and not re.search(r"[\"']thinking[\"']", text):
            before, _, after = text.partition(THOUGHTS)
            return before, after
    return None


def _ends_with(text: str, mark: str) -> bool:
    return text.rstrip().endswith(mark)


def _open_mark(text: str) -> str:
    """Return the text from the last mark on, without white space around it."""
    text = text.strip()
    return text if _MARK.search(text) else ""


def _last_mark(text: str) -> str:
    match = re.search(r"(<[^<>\s]+>|\[[A-Z_]+\])\s*$", text)
    return match[1] if match else ""


def _close_mark(after: str) -> str:
    """Return the first mark of a text."""
    text = after.strip()
    match = re.match(r"<[^<>\s]+>|\[/?[A-Z_]+\]", text)
    return match[0] if match else text
