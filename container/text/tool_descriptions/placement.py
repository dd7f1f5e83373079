"""Where a chat template reads tools: a variable, or a field of the system message."""

import json
from collections.abc import Sequence
from enum import Enum
from typing import Any

from container.text.tool_calls.probes import USER, Render

Message = dict[str, Any]
Tools = Sequence[dict[str, Any]]


class Placement(Enum):
    """Where a chat template reads tools, from the plainest on."""

    VARIABLE = "the variable `tools`"
    WITH_SYSTEM = "the variable `tools`, beside a system message"
    FIELD = "the field `tools` of the system message"
    TEXT_FIELD = "the same, as JSON"

    def place(self, messages: list[Message], tools: Tools) -> tuple[list[Message], Tools]:
        """Return messages and the variable `tools` with which the template renders the tools."""
        if self is Placement.VARIABLE:
            return messages, tools
        has_system = bool(messages) and messages[0]["role"] == "system"
        first = messages[0] if has_system else {"role": "system", "content": ""}
        rest = messages[1:] if has_system else messages
        if self is Placement.WITH_SYSTEM:
            return [first, *rest], tools
        as_text = self is Placement.TEXT_FIELD
        field = json.dumps(tools, ensure_ascii=False) if as_text else list(tools)
        return [first | {"tools": field}, *rest], ()


def find_placement(render: Render) -> Placement | None:
    """Find where a template reads tools; None if it renders them nowhere."""
    tool = {
        "type": "function",
        "function": {
            "name": "probe_tool",
            "description": "probe_description",
            "parameters": {
                "type": "object",
                "properties": {"probe_key": {"type": "string", "description": "a text"}},
                "required": ["probe_key"],
            },
        },
    }
    for placement in Placement:
        messages, tools = placement.place([{"role": "user", "content": USER}], [tool])
        try:
            text = render(messages, tools)
        except Exception:  # a template can raise anything
            continue
        # A field that is printed as Python's list is meant to be text.
        is_repr = placement is Placement.FIELD and "'probe_tool'" in text
        if "probe_tool" in text and USER in text and not is_repr:
            return placement
    return None
