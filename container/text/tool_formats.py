"""Tool call formats of model families, and their recognition by texts in a chat template.

Sources: the chat templates that the families publish with their weights.
"""

import re

from container.text.tool_calls.syntax import ArgumentStyle, ToolFormat

__all__ = ["FALLBACK", "FORMATS", "ArgumentStyle", "ToolFormat", "recognise"]

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
