"""Writes tool calls as a model would."""

from typing import Any

from container.text.tool_calls.arguments import write
from container.text.tool_calls.syntax import ID, INDEX, ToolFormat

_EXAMPLE_ID = "call00001"


def write_calls(form: ToolFormat, calls: list[tuple[str, dict[str, Any]]]) -> str:
    """Write calls, each a name and arguments, in a format."""
    written = [
        _with_fields(form, f"{form.call_begin}{name}{form.name_end}", index)
        + write(form, arguments)
        + _with_fields(form, form.call_end, index)
        for index, (name, arguments) in enumerate(calls)
    ]
    return form.begin + form.separator.join(written) + form.end


def _with_fields(form: ToolFormat, text: str, index: int) -> str:
    return text.replace(ID, _EXAMPLE_ID).replace(INDEX, str(form.first_index + index))
