"""Detects a model's message format from its chat template: reasoning marks, tools, roles."""

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from container.text import harmony
from container.text.addressed import ADDRESSED, AddressedFormat, AddressedParser, addressed_in
from container.text.delta import Parser, PlainParser
from container.text.message_parser import MessageParser
from container.text.reasoning import Reasoning, learn_content_marks, recognise_reasoning
from container.text.tool_calls.learner import writes_calls
from container.text.tool_calls.probes import Render
from container.text.tool_calls.syntax import ToolFormat
from container.text.tool_descriptions.placement import Placement, find_placement
from container.text.tool_formats import FALLBACK, format_named, name_of, recognise, takes_tools

log = logging.getLogger(__name__)

MAX_BLANKS = 8  # between the mark that opens the reasoning and the end of a prompt


@dataclass(frozen=True, slots=True)
class MessageStyle:
    """The message format of a model.

    `tool_format` is None if it is not known; then only `required` calls can be parsed, in FALLBACK.
    `tool_placement` is where the template reads tools; None if nowhere: the prompt then describes
    them.
    `writes_calls` is true if the template writes the calls of earlier messages; `content_marks`
    are texts around content that do not belong to it. `addressed` is the format of a model whose
    messages name their recipients; its `reasoning` is None.
    """

    reasoning: Reasoning | None
    tool_format: ToolFormat | None
    tool_placement: Placement | None
    writes_calls: bool = True
    content_marks: tuple[str, ...] = ()
    is_harmony: bool = False
    addressed: AddressedFormat | None = None

    @property
    def takes_tools(self) -> bool:
        """Whether the template renders tools."""
        return self.tool_placement is not None

    def starts_in_reasoning(self, prompt: str, answer: str = "") -> bool:
        """Whether the rendered prompt already opens the reasoning.

        `answer` is the part of the reply that the prompt ends with.
        """
        if self.reasoning is None:
            return False
        # Only marks at the end of the prompt count: earlier messages may quote them.
        end = prompt[-len(answer) - len(self.reasoning.open) - MAX_BLANKS :]
        opened = end.rfind(self.reasoning.open)
        if answer:
            return opened > end.rfind(self.reasoning.close)
        return opened >= 0 and end[opened:].strip() == self.reasoning.open

    def markers(self, *, with_tools: bool) -> str:
        """Return the marker texts that detokenizing must not omit, joined."""
        if self.is_harmony:
            return harmony.MARKERS
        if self.addressed is not None:
            return self.addressed.markers
        reasoning = self.reasoning.open + self.reasoning.close if self.reasoning else ""
        form = self.tool_format if with_tools else None
        return reasoning + "".join(self.content_marks) + (form.markers if form else "")

    @property
    def format_name(self) -> str:
        """The name of the tool call format: "learnt" for one without a name, or "unknown"."""
        if self.is_harmony:
            return "harmony"
        form = self.format_of_calls(must_call=False)
        return form.name if form else "unknown"

    def format_of_calls(self, *, must_call: bool) -> ToolFormat | None:
        """Return the format to request and to parse; None to leave the reply unparsed."""
        if self.tool_format is None and (must_call or not self.takes_tools):
            return FALLBACK
        return self.tool_format

    def parser(
        self,
        prompt: str,
        schemas: dict[str, dict[str, Any]],
        answer: str = "",
        *,
        must_call: bool = False,
    ) -> Parser:
        """Create a parser for one completion; `schemas` has the parameters of callable tools.

        `answer` is the part of the reply that the prompt ends with.
        """
        if self.is_harmony:
            return harmony.HarmonyParser()
        if self.addressed is not None:
            return AddressedParser(self.addressed, schemas, continues=bool(answer))
        if self.reasoning is None and not schemas and not self.content_marks:
            return PlainParser()
        return MessageParser(
            self.reasoning,
            self.format_of_calls(must_call=must_call) if schemas else None,
            starts_in_reasoning=self.starts_in_reasoning(prompt, answer),
            schemas=schemas,
            content_marks=self.content_marks,
        )


@lru_cache(maxsize=8)
def style_of(
    template: str,
    tool_format: str | None = None,
    render: Render | None = None,
    tokens: frozenset[str] = frozenset(),
) -> MessageStyle:
    """Detect the style of a chat template; `tool_format` overrides its tool call format.

    `render` renders messages with it, as Tokenizer.render_probe; without it only the template's
    text is read. `tokens` were added to the vocabulary.
    """
    placement = _placement(template, render)
    addressed = ADDRESSED.get(name_of(tool_format)) if tool_format else addressed_in(template)
    if addressed is not None:
        writes = render is None or writes_calls(render)
        return MessageStyle(None, addressed.calls, placement, writes, addressed=addressed)
    is_harmony = tool_format in harmony.NAMES or harmony.is_harmony(template)
    is_named = tool_format is not None and tool_format not in harmony.NAMES
    known = format_named(str(tool_format)) if is_named else recognise(template, render, tokens)
    if known is None and placement is not None and not is_harmony:
        log.warning(
            "chat template: its tool calls are in no known format, so calls are not parsed and "
            "`tool_choice: auto` has no grammar; set TOOL_CALL_PARSER to name the format"
        )
    reasoning = recognise_reasoning(template, render)
    trigger = known.trigger if known else ""
    marks = learn_content_marks(render, reasoning, trigger) if render else ()
    return MessageStyle(
        reasoning=reasoning,
        tool_format=known,
        tool_placement=placement,
        writes_calls=render is None or writes_calls(render),
        content_marks=marks,
        is_harmony=is_harmony,
    )


def _placement(template: str, render: Render | None) -> Placement | None:
    """Find where a template reads tools; without `render` only its text is read."""
    if render is None or not takes_tools(template):
        return Placement.VARIABLE if takes_tools(template) else None
    return find_placement(render)
