"""The shape of a whole message, from a frontend to the engine's grammar processes."""

import json
from dataclasses import dataclass
from typing import Any

import msgspec

from container.errors import InvalidParameter
from container.grammar.forms import Answer, check_schema_size
from container.text.addressed import AddressedFormat
from container.text.message_parser import Reasoning
from container.text.tool_calls.syntax import ToolFormat


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `parameters` is a JSON Schema of an object.

    `is_strict`: a schema that cannot be followed is refused, and no undeclared keys are allowed.
    """

    name: str
    parameters: dict[str, Any]
    is_strict: bool = False


@dataclass(frozen=True, slots=True)
class MessageShape:
    """The allowed forms of one message.

    A tool must be called if `needs_call`, at most one if not `allows_several`; `answer` is the form
    of a message without calls.
    """

    reasoning: Reasoning | None = None
    starts_in_reasoning: bool = False
    tool_format: ToolFormat | None = None
    tools: tuple[Tool, ...] = ()
    needs_call: bool = False
    allows_several: bool = True
    answer: Answer | None = None
    is_harmony: bool = False
    addressed: AddressedFormat | None = None


def encode_shape(shape: MessageShape) -> str:
    """Write a shape as SamplingParams.grammar has it; "" for no constraint.

    Raises InvalidParameter for a schema that is too large or nested too deeply.
    """
    if not shape.tools and shape.answer is None:
        return ""
    for index, tool in enumerate(shape.tools):
        check_schema_size(tool.parameters, f"tools[{index}].function.parameters")
    try:
        return json.dumps(msgspec.to_builtins(shape))
    except RecursionError:
        raise InvalidParameter("a schema of the request is nested too deeply") from None


def decode_shape(text: str) -> MessageShape:
    """Read what `encode_shape` wrote."""
    return msgspec.convert(json.loads(text), MessageShape)
