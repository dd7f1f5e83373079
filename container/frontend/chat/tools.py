"""The tools of one request, in the form that all APIs share."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from container.grammar.shape import Tool


class ToolMode(Enum):
    """Whether the model calls tools."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of one request. `described` is the list that the chat template renders."""

    mode: ToolMode = ToolMode.NONE
    tools: tuple[Tool, ...] = ()
    described: list[dict[str, Any]] = field(default_factory=list)
    allows_several: bool = True

    @property
    def schemas(self) -> dict[str, dict[str, Any]]:
        """The parameters of each tool that may be called."""
        return {tool.name: tool.parameters for tool in self.tools}


NO_TOOLS = ToolUse()
