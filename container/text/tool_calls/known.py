"""Tool call formats of model families, written by hand.

They serve templates that do not write the calls of earlier messages, and TOOL_CALL_PARSER. Sources:
the chat templates that the families publish with their weights.
"""

from container.text.tool_calls.syntax import (
    ArgumentStyle,
    ToolFormat,
)

# What models write before calls in formats without marks.
LOOSE_MARKS = ("<|python_tag|>", "<|python_start|>", "functools", "[TOOL_CALLS]", "<tool_call>")

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
    other_triggers=LOOSE_MARKS,
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
    other_triggers=LOOSE_MARKS,
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
