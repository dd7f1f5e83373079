"""Fits conversations into a chat template: the fewest remedies with which it loses nothing."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from container.errors import TemplateFailed
from container.text.history.content import Message
from container.text.history.links import linked
from container.text.history.remedies import (
    REMEDIES,
    Messages,
    Remedy,
    Write,
    as_json,
    calls_as_text,
    developer_as_system,
    one_message,
    results_as_user,
    with_calls_as,
)
from container.text.history.shape import (
    TOOL,
    Sentinel,
    Sentinels,
    Shape,
    sentinels_of,
    shape_of,
)

MAX_SHAPES = 256
# A template that loops takes all the time that a rendering may have, each time.
MAX_PROBING_S = 5.0
# Renders messages, with tools or without.
Render = Callable[[Messages, Sequence[dict[str, Any]]], str]


class HistoryFitter:
    """Rewrites conversations for one template, which it tries with sentinels.

    Safe to share between requests: a shape may be tried twice, with one result.
    """

    def __init__(
        self,
        render: Render,
        *,
        takes_tools: bool,
        takes_calls: bool | None = None,
        write: Write = as_json,
    ) -> None:
        """`render` raises TemplateFailed; the template knows tools, and calls (None: if tools).

        `write` writes calls as the model does, for a template that does not.
        """
        self._render = render
        self._takes_tools = takes_tools
        self._calls_as_text = with_calls_as(write)
        self._ladder = [
            self._calls_as_text if remedy is calls_as_text else remedy for remedy in REMEDIES
        ]
        self._takes_calls = takes_tools if takes_calls is None else takes_calls
        self._remedies: OrderedDict[Shape, Sequence[Remedy]] = OrderedDict()
        self._first: list[Remedy] | None = None  # for every conversation

    def fit(self, messages: Sequence[Message], *, has_tools: bool) -> Messages:
        """Return the messages as the template takes them.

        Raises TemplateFailed, with the message's field, if no remedy keeps all of a message.
        """
        fitted = apply(self._always(), linked(list(messages)))
        shape = shape_of(fitted, has_tools=has_tools)
        remedies = self._remedies.get(shape)
        if remedies is None:
            remedies = self._remedies[shape] = self._choose(shape)
            if len(self._remedies) > MAX_SHAPES:
                self._remedies.popitem(last=False)
        return apply(remedies, fitted)

    def _always(self) -> list[Remedy]:
        if self._first is None:
            first: list[Remedy] = [] if self._knows_developer() else [developer_as_system]
            if not self._takes_calls:
                first += [self._calls_as_text, results_as_user]
            self._first = first
        return self._first

    def _knows_developer(self) -> bool:
        """Whether the template renders developer messages other than by printing any role."""
        texts = []
        for role in ("developer", "zqrole"):
            messages = [{"role": role, "content": "zqdev"}, {"role": "user", "content": "zquser"}]
            try:
                texts.append(self._render(messages, ()).replace("zqrole", "developer"))
            except TemplateFailed:
                texts.append("")
        return "zqdev" in texts[0] and texts[0] != texts[1]

    def _choose(self, shape: Shape) -> Sequence[Remedy]:
        """Find remedies with which nothing is lost; none, if no rendering can show it."""
        sentinels = sentinels_of(shape)
        chosen: list[Remedy] = []
        deadline = time.monotonic() + MAX_PROBING_S
        lost = self._lost(sentinels, chosen, shape)
        for remedy in self._ladder:
            if lost == [] or time.monotonic() > deadline:
                break
            candidate = [*chosen, remedy]
            if apply(candidate, sentinels.messages) == apply(chosen, sentinels.messages):
                continue
            # To write calls anew is not worth it for their names alone.
            is_rewriting = remedy in (self._calls_as_text, one_message)
            if lost and is_rewriting and all(sentinel.is_name for sentinel in lost):
                continue
            new = self._lost(sentinels, candidate, shape)
            # A refusal does not name its reason: continue with all remedies tried so far.
            if lost is None or (new is not None and len(new) < len(lost)):
                chosen, lost = candidate, new
        if lost is None:
            return ()
        if not all(sentinel.is_name for sentinel in lost):
            if self._rewrites_texts():
                return ()
            raise TemplateFailed(
                f"the chat template leaves out a part of a message with role "
                f"{shape.messages[lost[0].index].role[:40]!r}, and no other form of it is rendered",
                field="messages",
            )
        return self._needed(sentinels, chosen, shape, len(lost))

    def _needed(
        self, sentinels: Sentinels, chosen: list[Remedy], shape: Shape, num_lost: int
    ) -> list[Remedy]:
        """Drop the remedies without which no more is lost, the strongest first."""
        for remedy in reversed(chosen):
            fewer = [other for other in chosen if other is not remedy]
            lost = self._lost(sentinels, fewer, shape)
            if lost is not None and len(lost) <= num_lost:
                chosen = fewer
        return chosen

    def _lost(
        self, sentinels: Sentinels, remedies: Sequence[Remedy], shape: Shape
    ) -> list[Sentinel] | None:
        """Return the lost sentinels; None if the template refuses the conversation."""
        tools = (TOOL,) if shape.has_tools and self._takes_tools else ()
        try:
            return sentinels.lost(self._render(apply(remedies, sentinels.messages), tools))
        except TemplateFailed:
            return None

    def _rewrites_texts(self) -> bool:
        """Whether sentinels are no use, since the template renders every text as another."""
        texts = {self._render([{"role": "user", "content": text}], ()) for text in ("zqa", "zqb")}
        return len(texts) == 2 and not any("zq" in text for text in texts)


def apply(remedies: Sequence[Remedy], messages: Messages) -> Messages:
    """Apply remedies, one after another."""
    for remedy in remedies:
        messages = remedy(messages)
    return messages
