"""Tool call formats of model families, and their recognition by texts in a chat template.

Sources: the chat templates that the families publish with their weights.
"""

import re
from dataclasses import replace

from container.text.tool_calls import learner
from container.text.tool_calls.probes import Render
from container.text.tool_calls.syntax import INDEX, ArgumentStyle, PairMarks, ToolFormat

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

PYTHONIC_MARKED = replace(
    PYTHONIC,
    name="lfm2",
    trigger="<|tool_call_start|>",
    begin="<|tool_call_start|>[",
    end="]<|tool_call_end|>",
    only_at_start=False,
)
GRANITE = replace(MISTRAL_JSON, name="granite", trigger="<|tool_call|>", begin="<|tool_call|>[")
KIMI_K2 = ToolFormat(
    "kimi_k2",
    trigger="<|tool_calls_section_begin|>",
    begin="<|tool_calls_section_begin|>",
    call_begin="<|tool_call_begin|>functions.",
    name_end=f":{INDEX}<|tool_call_argument_begin|>",
    call_end="<|tool_call_end|>",
    end="<|tool_calls_section_end|>",
)
GLM = ToolFormat(
    "glm45",
    trigger="<tool_call>",
    call_begin="<tool_call>",
    name_end="\n",
    call_end="</tool_call>",
    separator="\n",
    arguments=ArgumentStyle.XML,
    pairs=PairMarks("<arg_key>", ("</arg_key>\n<arg_value>",), "</arg_value>\n"),
)
FIREFUNCTION = ToolFormat(
    "firefunction",
    trigger="functools[",
    begin="functools[",
    call_begin='{"name": "',
    name_end='", "arguments": ',
    call_end="}",
    separator=", ",
    end="]",
)

# For templates that do not write calls themselves, in matching order: the template contains the
# first text and does not contain the second.
_SIGNS: list[tuple[str, str | None, ToolFormat]] = [
    ("<function=", None, QWEN_XML),
    ("<arg_key>", None, GLM),
    ("<tool_call>", None, HERMES),
    ("[ARGS]", None, MISTRAL),
    ("[TOOL_CALLS]", None, MISTRAL_JSON),
    ("<｜tool▁calls▁begin｜>", "```json", DEEPSEEK_V31),
    ("<｜tool▁calls▁begin｜>", None, DEEPSEEK_V3),
    ("<start_function_call>", None, GEMMA),
    ("<|tool_calls_section_begin|>", None, KIMI_K2),
    ("<|tool_call_start|>", None, PYTHONIC_MARKED),
    ("<|tool_call|>", None, GRANITE),
    ("functools[", None, FIREFUNCTION),
    ("func_name1(", None, PYTHONIC),
    ('"parameters": ', None, LLAMA_JSON),
]
_FURTHER = (PYTHONIC_MARKED, GRANITE, KIMI_K2, GLM, FIREFUNCTION)
FORMATS = {form.name: form for _, _, form in _SIGNS if form not in _FURTHER}
FURTHER_FORMATS = {form.name: form for form in _FURTHER}
# For templates without tools; TGI, too, requests this format in the prompt.
FALLBACK = LLAMA_JSON


def recognise(template: str, render: Render | None = None) -> ToolFormat | None:
    """Learn the format from the calls that a template writes; None if it is not known.

    A template that writes no calls is recognised by texts in it. Without `render` only the text is
    read, and FALLBACK is returned for one that takes tools and has no such text.
    """
    if render is not None and learner.writes_calls(render):
        learnt = learner.learn(render)
        return None if learnt is None else _named(learnt)
    if not takes_tools(template):
        return None
    for sign, counter_sign, tool_format in _SIGNS:
        if sign in template and (counter_sign is None or counter_sign not in template):
            return tool_format
    return FALLBACK if render is None else None


def takes_tools(template: str) -> bool:
    """Whether a chat template takes tools."""
    return re.search(r"\btools\b", template) is not None


def format_named(name: str) -> ToolFormat:
    """Return a format by its name here, in vLLM or in SGLang."""
    return (FORMATS | FURTHER_FORMATS)[name]


def _named(learnt: ToolFormat) -> ToolFormat:
    """Return the known format with the same texts, white space aside; else the learnt one."""
    for known in (FORMATS | FURTHER_FORMATS).values():
        if _essence(known) == _essence(learnt):
            return replace(learnt, name=known.name) if learnt.allows_several else known
    return learnt


def _essence(form: ToolFormat) -> tuple[object, ...]:
    texts = (form.begin + form.call_begin, form.name_end, form.call_end)
    pairs = form.pairs if form.arguments is ArgumentStyle.XML else None
    return (
        form.arguments,
        pairs and pairs.open.strip(),
        *("".join(text.split()) for text in texts),
    )
