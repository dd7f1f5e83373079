"""`tools` and `tool_choice` of chat completions and responses, as OpenAI and TGI write them."""

import json
import re
from typing import Any

from container.errors import InvalidParameter, UnsupportedParameter
from container.frontend.chat.tools import NO_TOOLS, ToolMode, ToolUse
from container.frontend.web.json_size import find_excess
from container.frontend.web.request_body import Body, parse
from container.grammar.shape import Tool

MAX_TOOLS = 128  # OpenAI's own limit
NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}
# A schema of an object without properties that has nothing but these takes no arguments.
_ARGUMENTLESS_KEYWORDS = {"type", "properties", "required", "title", "description", "$schema"}


class Function(Body):
    """A function that the model may call. `arguments` is what TGI calls `parameters`."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    arguments: dict[str, Any] | None = None
    strict: bool | None = None


def read_tools(
    tools: list[dict[str, Any]] | None, choice: Any, *, parallel: bool | None
) -> ToolUse:
    """Check `tools` and `tool_choice`. Raises InvalidParameter or UnsupportedParameter."""
    if not tools:
        if choice not in (None, "none", "auto"):
            raise InvalidParameter("`tool_choice` needs `tools`", field="tool_choice")
        return NO_TOOLS
    if len(tools) > MAX_TOOLS:
        raise InvalidParameter(
            f"`tools` has {len(tools)} tools; the limit is {MAX_TOOLS}", field="tools"
        )
    read = [_read_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    names = [tool.name for tool in read]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidParameter(f"`tools` has {twice!r} more than once", field="tools")
    mode, forced_name = _read_choice(choice, names)
    if mode is ToolMode.NONE:
        return NO_TOOLS
    chosen = tuple(tool for tool in read if forced_name in (None, tool.name))
    described = [{"type": "function", "function": _described(tool)} for tool in tools]
    return ToolUse(mode, chosen, described, parallel is not False and forced_name is None)


def read_arguments(arguments: str | dict[str, Any] | None) -> str | dict[str, Any]:
    """Return the arguments of an earlier call: an object, or the text if it is not JSON.

    A completion that was cut by its length has such text.
    """
    if not isinstance(arguments, str):
        return arguments or {}
    if find_excess(arguments) is not None:
        return arguments
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _read_tool(tool: dict[str, Any], where: str) -> Tool:
    kind = tool.get("type", "function")
    if kind != "function":
        raise UnsupportedParameter(
            f"`{where}.type`: tools of type {str(kind)[:40]!r} are not supported by this server; "
            "`function` is",
            field=f"{where}.type",
        )
    inner = _function(tool)
    where = f"{where}.function" if "function" in tool else where
    if not isinstance(inner, dict):
        raise InvalidParameter(f"`{where}` must be an object", field=where)
    try:
        function = parse(Function, inner)
    except InvalidParameter as error:
        path = f"{where}.{error.field}"
        raise InvalidParameter(f"`{where}`: {error.message}", field=path) from None
    if not NAME.fullmatch(function.name):
        raise InvalidParameter(
            f"`{where}.name` must have 1 to 64 letters, digits, '_', '-' or '.'",
            field=f"{where}.name",
        )
    parameters = function.parameters or function.arguments or NO_ARGUMENTS
    if parameters.get("type", "object") != "object":
        raise InvalidParameter(
            f"`{where}.parameters` must be a schema of an object", field=f"{where}.parameters"
        )
    parameters = parameters | {"type": "object"}
    if parameters.get("properties") == {} and parameters.keys() <= _ARGUMENTLESS_KEYWORDS:
        parameters = parameters | {"additionalProperties": False}
    return Tool(function.name, parameters, bool(function.strict))


def _described(tool: dict[str, Any]) -> dict[str, Any]:
    """The function as chat templates read it: with all that they expect, and nothing that is null.

    A function may have a name only, and some clients write every field that they know.
    """
    defaults: dict[str, Any] = {"description": "", "parameters": NO_ARGUMENTS}
    function = {key: value for key, value in _function(tool).items() if value is not None}
    if "arguments" in function and "parameters" not in function:
        defaults["parameters"] = function["arguments"]
    return function | {key: value for key, value in defaults.items() if key not in function}


def _function(tool: dict[str, Any]) -> Any:
    """The function of a tool: inside in chat completions, the tool itself in responses."""
    if "function" in tool:
        return tool["function"]
    return {key: value for key, value in tool.items() if key != "type"}


def _read_choice(choice: Any, names: list[str]) -> tuple[ToolMode, str | None]:
    """The mode, and the one tool that is named. A bare name is TGI's form."""
    if choice is None:
        return ToolMode.AUTO, None
    if choice in [mode.value for mode in ToolMode]:
        return ToolMode(choice), None
    name = choice
    if isinstance(choice, dict):
        inner = choice.get("function", choice)
        name = inner.get("name") if isinstance(inner, dict) else None
        if choice.get("type", "function") != "function":
            raise UnsupportedParameter(
                f"`tool_choice.type` {str(choice['type'])[:40]!r} is not supported by this server",
                field="tool_choice",
            )
    if not isinstance(name, str):
        raise InvalidParameter(
            "`tool_choice` must be 'none', 'auto', 'required', or name a function",
            field="tool_choice",
        )
    if name not in names:
        raise InvalidParameter(
            f"`tool_choice`: there is no tool {name[:70]!r} in `tools`", field="tool_choice"
        )
    return ToolMode.REQUIRED, name
