"""Finds the tool call format of a model: learnt from its chat template, recognised, or named."""

import re
from dataclasses import replace

from container.text.tool_calls import learner
from container.text.tool_calls.formats import (
    DEEPSEEK_V3,
    DEEPSEEK_V31,
    FORMATS,
    GEMMA,
    GRANITE,
    HERMES,
    KIMI_K2,
    LFM2,
    LLAMA_JSON,
    MISTRAL,
    MISTRAL_JSON,
    PYTHONIC,
)
from container.text.tool_calls.pair_formats import GLM45, QWEN_XML
from container.text.tool_calls.probes import Probes, Render
from container.text.tool_calls.read_back import reads_back
from container.text.tool_calls.syntax import ArgumentStyle, ToolFormat

__all__ = ["FALLBACK", "FORMATS", "ArgumentStyle", "ToolFormat", "recognise"]

# For templates that do not write calls themselves, in matching order: the template contains the
# first text and does not contain the second.
_SIGNS: list[tuple[str, str | None, ToolFormat]] = [
    ("<function=", None, QWEN_XML),
    ("<arg_key>", None, GLM45),
    ("<tool_call>", None, HERMES),
    ("[ARGS]", None, MISTRAL),
    ("[TOOL_CALLS]", None, MISTRAL_JSON),
    ("<｜tool▁calls▁begin｜>", "```json", DEEPSEEK_V31),
    ("<｜tool▁calls▁begin｜>", None, DEEPSEEK_V3),
    ("<start_function_call>", None, GEMMA),
    ("<|tool_calls_section_begin|>", None, KIMI_K2),
    ("<|tool_call_start|>", None, LFM2),
    ("<|tool_call|>", None, GRANITE),
    ("<|tool_list_start|>", None, LFM2),
    ("func_name1(", None, PYTHONIC),
    ("<tool_calls>", "<tool_calls>[", FORMATS["minimax_m1"]),
    ("<tool_calls>", None, FORMATS["hunyuan_a13b"]),
    ("<function_calls>", None, FORMATS["olmo3"]),
    ("<function_call>", None, FORMATS["granite-20b-fc"]),
    ('"parameters": ', None, LLAMA_JSON),
]
_LISTED = {sign for sign, _, _ in _SIGNS} | {"<function"}
# Marks that only one family has come first, the longest of them before others that they contain.
_OWN_SIGNS: list[tuple[str, str | None, ToolFormat]] = [
    (form.trigger, None, form)
    for form in sorted(FORMATS.values(), key=lambda form: -len(form.trigger))
    if form.trigger.startswith(("<", "]<")) and form.trigger not in _LISTED
]
# The names of vLLM and SGLang that differ from those here.
_ALIASES = {
    "apertus2509": "apertus",
    "cohere_command3": "cohere_command4",
    "deepseekv3": "deepseek_v3",
    "deepseekv31": "deepseek_v31",
    "deepseekv32": "deepseek_v32",
    "deepseekv4": "deepseek_v4",
    "deepseekv41": "deepseek_v41",
    "ernie45": "hermes",
    "functiongemma": "gemma",
    "gigachat35": "gigachat3",
    "glm": "glm45",
    "granite4": "hermes",
    "hunyuan": "hunyuan_a13b",
    "hy_v4": "hy_v3",
    "interns1": "internlm",
    "jamba": "hunyuan_a13b",
    "ling3": "glm45",
    "llama3": "llama_json",
    "llama3_json": "llama_json",
    "llama4_json": "llama_json",
    "llama4_pythonic": "pythonic",
    "mimo": "hermes",
    "muse": "muse_glimmer",
    "musespark1x": "muse_glimmer",
    "minimax-m2": "minimax_m2",
    "minimax-m3": "minimax_m3",
    "nanbeige": "qwen_xml",
    "poolside_v1": "glm47",
    "qwen": "hermes",
    "qwen25": "hermes",
    "qwen3_coder": "qwen_xml",
    "qwen3_json": "hermes",
    "qwen3_xml": "qwen_xml",
    "spark25": "glm47",
    "step3p5": "qwen_xml",
    "step5": "qwen_xml",
    "trinity": "hermes",
}
# For templates without tools; TGI, too, requests this format in the prompt.
FALLBACK = LLAMA_JSON


def recognise(
    template: str, render: Render | None = None, tokens: frozenset[str] = frozenset()
) -> ToolFormat | None:
    """Learn the format from the calls that a template writes; None if it is not known.

    A template that writes no calls is recognised by texts in it, or else by the `tokens` that were
    added to the vocabulary. Without `render` only the text is read, and FALLBACK is returned for
    one that takes tools and has no such text.
    """
    if render is not None and learner.writes_calls(render):
        learnt = learner.learn(render)
        return _proved(template, render) if learnt is None else _named(learnt)
    if not takes_tools(template):
        return None
    return _by_signs(template) or (
        FALLBACK if render is None else _by_signs("\n".join(sorted(tokens)), plain=False)
    )


def _by_signs(text: str, *, plain: bool = True) -> ToolFormat | None:
    """Find a format whose sign is in a text; `plain`: signs that are no marks count, too."""
    for sign, counter_sign, tool_format in (*_OWN_SIGNS, *_SIGNS):
        is_sign = plain or sign[0] in "<[]"
        if is_sign and sign in text and (counter_sign is None or counter_sign not in text):
            return tool_format
    return None


def _proved(template: str, render: Render) -> ToolFormat | None:
    """Find a known format whose parser reads back what a template writes."""
    marked = [form for form in FORMATS.values() if form.trigger in template]
    return next((form for form in marked if reads_back(form, Probes(render))), None)


def takes_tools(template: str) -> bool:
    """Whether a chat template takes tools."""
    return re.search(r"\btools\b", template) is not None


def format_named(name: str) -> ToolFormat:
    """Return a format by its name here, in vLLM or in SGLang."""
    return FORMATS[name_of(name)]


def name_of(name: str) -> str:
    """Return the name here of a format, given by its name here, in vLLM or in SGLang."""
    return _ALIASES.get(name, name)


def _named(learnt: ToolFormat) -> ToolFormat:
    """Return the known format with the same texts, white space aside; else the learnt one."""
    for known in FORMATS.values():
        if _essence(known) == _essence(learnt):
            triggers = known.other_triggers
            named = replace(learnt, name=known.name, other_triggers=triggers)
            return named if learnt.allows_several else known
    return learnt


def _essence(form: ToolFormat) -> tuple[object, ...]:
    texts = (form.begin + form.call_begin, form.name_end, form.call_end)
    pairs = form.pairs if form.arguments is ArgumentStyle.XML else None
    return (
        form.arguments,
        pairs and pairs.open.strip(),
        *("".join(text.split()) for text in texts),
    )
