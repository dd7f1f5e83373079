"""Detects a model's message format from its chat template: reasoning marks, tools, roles."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from container.text import harmony
from container.text.message_parser import (
    MessageParser,
    Parser,
    PlainParser,
    Reasoning,
    recognise_reasoning,
)
from container.text.tool_formats import FALLBACK, FORMATS, ToolFormat, recognise


@dataclass(frozen=True, slots=True)
class MessageStyle:
    """The message format of a model.

    `takes_tools` is false for a template without tools; the prompt then describes the tools and
    requests calls in `tool_format`.
    """

    reasoning: Reasoning | None
    tool_format: ToolFormat
    takes_tools: bool
    knows_developer: bool
    is_harmony: bool = False

    def starts_in_reasoning(self, prompt: str) -> bool:
        """Whether the rendered prompt already opens the reasoning."""
        if self.reasoning is None:
            return False
        opened = prompt.rfind(self.reasoning.open)
        # Only a mark at the end of the prompt counts: earlier messages may quote it.
        is_last = prompt[opened:].strip() == self.reasoning.open
        return opened >= 0 and is_last

    def markers(self, *, with_tools: bool) -> str:
        """Return the marker texts that detokenizing must not omit, joined."""
        if self.is_harmony:
            return harmony.MARKERS
        reasoning = self.reasoning.open + self.reasoning.close if self.reasoning else ""
        return reasoning + (self.tool_format.markers if with_tools else "")

    def parser(self, prompt: str, schemas: dict[str, dict[str, Any]]) -> Parser:
        """Create a parser for one completion; `schemas` has the parameters of callable tools."""
        if self.is_harmony:
            return harmony.HarmonyParser()
        if self.reasoning is None and not schemas:
            return PlainParser()
        return MessageParser(
            self.reasoning,
            self.tool_format if schemas else None,
            starts_in_reasoning=self.starts_in_reasoning(prompt),
            schemas=schemas,
        )


@lru_cache(maxsize=8)
def style_of(template: str, tool_format: str | None = None) -> MessageStyle:
    """Detect the style of a chat template; `tool_format` overrides its tool call format."""
    recognised = recognise(template)
    return MessageStyle(
        reasoning=recognise_reasoning(template),
        tool_format=FORMATS[tool_format] if tool_format else recognised or FALLBACK,
        takes_tools=recognised is not None,
        knows_developer="developer" in template,
        is_harmony=harmony.is_harmony(template),
    )
