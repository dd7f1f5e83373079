"""What a chat template tells of a model's messages: its reasoning, its tools, its roles."""

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
    """How a model writes its messages. `takes_tools` is false for a template that knows none; its
    calls are asked for in the prompt, and `tool_format` is what is asked for."""

    reasoning: Reasoning | None
    tool_format: ToolFormat
    takes_tools: bool
    knows_developer: bool
    is_harmony: bool = False

    def starts_in_reasoning(self, prompt: str) -> bool:
        """Whether the template has begun the reasoning already."""
        if self.reasoning is None:
            return False
        opened = prompt.rfind(self.reasoning.open)
        # Only what ends the prompt counts: earlier turns may quote the mark.
        is_last = prompt[opened:].strip() == self.reasoning.open
        return opened >= 0 and is_last

    def markers(self, *, with_tools: bool) -> str:
        """The texts that must stay visible in a completion."""
        if self.is_harmony:
            return harmony.MARKERS
        reasoning = self.reasoning.open + self.reasoning.close if self.reasoning else ""
        return reasoning + (self.tool_format.markers if with_tools else "")

    def parser(self, prompt: str, schemas: dict[str, dict[str, Any]]) -> Parser:
        """A parser of one completion; `schemas` has the parameters of the tools it may call."""
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
    """The style of a chat template; `tool_format` names another format of calls."""
    recognised = recognise(template)
    return MessageStyle(
        reasoning=recognise_reasoning(template),
        tool_format=FORMATS[tool_format] if tool_format else recognised or FALLBACK,
        takes_tools=recognised is not None,
        knows_developer="developer" in template,
        is_harmony=harmony.is_harmony(template),
    )
