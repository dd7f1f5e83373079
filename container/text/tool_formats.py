"""Tool call formats of model families, and their detection from a chat template.

    begin | call_begin NAME name_end ARGUMENTS call_end | separator | call_begin ... | end

A format is recognised by texts in the chat template. Sources: the chat templates that the families
publish with their weights.
"""

import ast
import json
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from container.text import gemma_arguments


class ArgumentStyle(Enum):
    """The syntax of a call's arguments."""

    JSON = "json"
    PYTHON = "python"  # name=value, separated by commas
    XML = "xml"  # <parameter=name>, a line, the value, a line, </parameter>
    GEMMA = "gemma"  # see container.text.gemma_arguments


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """The fixed texts around tool calls.

    `trigger` marks the start of the calls where text may precede them; a format `only_at_start`
    has calls instead of text, never after it.
    """

    name: str
    trigger: str
    call_begin: str
    name_end: str
    call_end: str
    separator: str = ""
    begin: str = ""
    end: str = ""
    arguments: ArgumentStyle = ArgumentStyle.JSON
    only_at_start: bool = False

    @property
    def markers(self) -> str:
        """All fixed texts joined, to find the special tokens among them."""
        quote = gemma_arguments.QUOTE if self.arguments is ArgumentStyle.GEMMA else ""
        texts = (self.begin, self.call_begin, self.name_end, self.call_end, self.end, quote)
        return "".join(texts)


HERMES = ToolFormat(
    "hermes",
    trigger="<tool_call>",
    call_begin='<tool_call>\n{"name": "',
    name_end='", "arguments": ',
    call_end="}\n</tool_call>",
    separator="\n",
)
QWEN_XML = ToolFormat(
    "qwen_xml",
    trigger="<tool_call>",
    call_begin="<tool_call>\n<function=",
    name_end=">\n",
    call_end="</function>\n</tool_call>",
    separator="\n",
    arguments=ArgumentStyle.XML,
)
LLAMA_JSON = ToolFormat(
    "llama_json",
    trigger='{"name": "',
    call_begin='{"name": "',
    name_end='", "parameters": ',
    call_end="}",
    separator="; ",
    only_at_start=True,
)
PYTHONIC = ToolFormat(
    "pythonic",
    trigger="[",
    begin="[",
    call_begin="",
    name_end="(",
    call_end=")",
    separator=", ",
    end="]",
    arguments=ArgumentStyle.PYTHON,
    only_at_start=True,
)
MISTRAL_JSON = ToolFormat(
    "mistral_json",
    trigger="[TOOL_CALLS]",
    begin="[TOOL_CALLS][",
    call_begin='{"name": "',
    name_end='", "arguments": ',
    call_end="}",
    separator=", ",
    end="]",
)
MISTRAL = ToolFormat(
    "mistral",
    trigger="[TOOL_CALLS]",
    call_begin="[TOOL_CALLS]",
    name_end="[ARGS]",
    call_end="",
)
DEEPSEEK_V3 = ToolFormat(
    "deepseek_v3",
    trigger="<｜tool▁calls▁begin｜>",
    begin="<｜tool▁calls▁begin｜>",
    call_begin="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    name_end="\n```json\n",
    call_end="\n```<｜tool▁call▁end｜>",
    separator="\n",
    end="<｜tool▁calls▁end｜>",
)
DEEPSEEK_V31 = ToolFormat(
    "deepseek_v31",
    trigger="<｜tool▁calls▁begin｜>",
    begin="<｜tool▁calls▁begin｜>",
    call_begin="<｜tool▁call▁begin｜>",
    name_end="<｜tool▁sep｜>",
    call_end="<｜tool▁call▁end｜>",
    end="<｜tool▁calls▁end｜>",
)

GEMMA = ToolFormat(
    "gemma",
    trigger="<start_function_call>",
    call_begin="<start_function_call>call:",
    name_end="{",
    call_end="}<end_function_call>",
    arguments=ArgumentStyle.GEMMA,
)

# In matching order: the template contains the first text and does not contain the second.
_SIGNS: list[tuple[str, str | None, ToolFormat]] = [
    ("<function=", None, QWEN_XML),
    ("<tool_call>", None, HERMES),
    ("[ARGS]", None, MISTRAL),
    ("[TOOL_CALLS]", None, MISTRAL_JSON),
    ("<｜tool▁calls▁begin｜>", "```json", DEEPSEEK_V31),
    ("<｜tool▁calls▁begin｜>", None, DEEPSEEK_V3),
    ("<start_function_call>", None, GEMMA),
    ("func_name1(", None, PYTHONIC),
    ('"parameters": ', None, LLAMA_JSON),
]
FORMATS = {tool_format.name: tool_format for _, _, tool_format in _SIGNS}
# For templates without tools; TGI, too, requests this format in the prompt.
FALLBACK = LLAMA_JSON


def recognise(template: str) -> ToolFormat | None:
    """Detect the tool call format of a chat template; None if the template takes no tools."""
    if not re.search(r"\btools\b", template):
        return None
    for sign, counter_sign, tool_format in _SIGNS:
        if sign in template and (counter_sign is None or counter_sign not in template):
            return tool_format
    return FALLBACK


def to_json(style: ArgumentStyle, text: str, schema: dict[str, Any]) -> str:
    """Convert the arguments of a complete call to a JSON object.

    Text that does not parse in this style is returned unchanged.
    """
    try:
        if style is ArgumentStyle.PYTHON:
            return json.dumps(_from_python(text), ensure_ascii=False)
        if style is ArgumentStyle.XML:
            return json.dumps(_from_xml(text, schema), ensure_ascii=False)
        if style is ArgumentStyle.GEMMA:
            return json.dumps(gemma_arguments.read(text), ensure_ascii=False)
    except (SyntaxError, ValueError):
        pass
    return text


def _from_python(text: str) -> dict[str, Any]:
    call = ast.parse(f"f({text})", mode="eval").body
    assert isinstance(call, ast.Call)
    return {
        argument.arg: _value(argument.value)
        for argument in call.keywords
        if argument.arg is not None
    }


def _value(node: ast.expr) -> Any:
    """Evaluate a literal of Python or JSON."""
    names = {"true": True, "false": False, "null": None}
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.List):
        return [_value(element) for element in node.elts]
    if isinstance(node, ast.Dict):
        keys = [ast.literal_eval(key) for key in node.keys if key is not None]
        return dict(zip(keys, map(_value, node.values), strict=True))
    return ast.literal_eval(node)


def _from_xml(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    pairs = re.findall(r"<parameter=([^>\n]+)>\n(.*?)\n</parameter>", text, re.DOTALL)
    properties = schema.get("properties", {})
    return {name: _typed(value, properties.get(name)) for name, value in pairs}


def _typed(value: str, schema: Any) -> Any:
    if is_plain_text(schema):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def is_plain_text(schema: Any) -> bool:
    """Whether values of this schema are strings, which the format writes without quotes."""
    if not isinstance(schema, dict):
        return False
    options = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return schema.get("type") == "string" or (
        bool(options) and all(isinstance(option, str) for option in options)
    )
