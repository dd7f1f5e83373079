"""Tool call formats of model families: one table of descriptions.

They serve templates that do not write the calls of earlier messages, and TOOL_CALL_PARSER. Sources:
the chat templates that the families publish with their weights, and the names of vLLM and SGLang.
"""

from dataclasses import replace

from container.text.tool_calls.pair_formats import (
    GLM45,
    GLM47,
    HUNYUAN_V3,
    IQUEST,
    KIMI_K3,
    MINICPM5,
    MINIMAX_M3,
    QWEN_XML,
    SEED,
    STEP3,
    invocations,
)
from container.text.tool_calls.syntax import INDEX, ArgumentStyle, ToolFormat

# Marks that models write before calls in formats without marks.
LOOSE_MARKS = ("<|python_tag|>", "<|python_start|>", "functools", "[TOOL_CALLS]", "<tool_call>")

HERMES = ToolFormat(
    "hermes",
    trigger="<tool_call>",
    call_begin='<tool_call>\n{"name": "',
    name_end='", "arguments": ',
    call_end="}\n</tool_call>",
    separator="\n",
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


def _json_list(name: str, begin: str, end: str) -> ToolFormat:
    """Describe a JSON list of calls between two marks."""
    return replace(MISTRAL_JSON, name=name, trigger=begin, begin=f"{begin}[", end=f"]{end}")


def _json_objects(name: str, begin: str, end: str) -> ToolFormat:
    """Describe calls that are JSON objects, each between two marks."""
    return replace(
        HERMES,
        name=name,
        trigger=(begin.split() or [""])[0],
        call_begin=f'{begin}{{"name": "',
        call_end=f"}}{end}",
    )


LFM2 = replace(
    PYTHONIC,
    name="lfm2",
    trigger="<|tool_call_start|>",
    begin="<|tool_call_start|>[",
    end="]<|tool_call_end|>",
    only_at_start=False,
    other_triggers=(),
)
OLMO3 = replace(
    PYTHONIC,
    name="olmo3",
    trigger="<function_calls>",
    begin="<function_calls>",
    separator="\n",
    end="</function_calls>",
    only_at_start=False,
    other_triggers=(),
)
GRANITE = replace(_json_list("granite", "<|tool_call|>", ""), other_triggers=("<tool_call>",))
KIMI_K2 = ToolFormat(
    "kimi_k2",
    trigger="<|tool_calls_section_begin|>",
    begin="<|tool_calls_section_begin|>",
    call_begin="<|tool_call_begin|>functions.",
    name_end=f":{INDEX}<|tool_call_argument_begin|>",
    call_end="<|tool_call_end|>",
    end="<|tool_calls_section_end|>",
)
GEMMA4 = replace(
    GEMMA,
    name="gemma4",
    trigger="<|tool_call>",
    call_begin="<|tool_call>call:",
    call_end="}<tool_call|>",
    quote='<|"|>',
)
COHERE = ToolFormat(
    "cohere_command4",
    trigger="<|START_ACTION|>",
    begin="<|START_ACTION|>[\n    ",
    call_begin=f'{{"tool_call_id": "{INDEX}", "tool_name": "',
    name_end='", "parameters": ',
    call_end="}",
    separator=",\n    ",
    end="\n]<|END_ACTION|>",
)
APERTUS = ToolFormat(
    "apertus",
    trigger="<|tools_prefix|>",
    begin="<|tools_prefix|>[",
    call_begin='{"',
    name_end='": ',
    call_end="}",
    separator=", ",
    end="]<|tools_suffix|>",
)
PLAMO3 = ToolFormat(
    "plamo3",
    trigger="<|plamo:begin_tool_requests:plamo|>",
    begin="<|plamo:begin_tool_requests:plamo|>",
    call_begin="<|plamo:begin_tool_request:plamo|><|plamo:begin_tool_name:plamo|>",
    name_end="<|plamo:end_tool_name:plamo|>"
    "<|plamo:begin_tool_arguments:plamo|><|plamo:constrain|>json<|plamo:msg|>",
    call_end="<|plamo:end_tool_arguments:plamo|><|plamo:end_tool_request:plamo|>",
    end="<|plamo:end_tool_requests:plamo|>",
)
_ALL = (
    HERMES, QWEN_XML, LLAMA_JSON, PYTHONIC, MISTRAL_JSON, MISTRAL, DEEPSEEK_V3, DEEPSEEK_V31,
    GEMMA, LFM2, OLMO3, GRANITE, KIMI_K2, KIMI_K3, GLM45, GLM47, HUNYUAN_V3, SEED, MINICPM5,
    MINIMAX_M3, GEMMA4, COHERE, APERTUS, IQUEST, STEP3, PLAMO3,
    invocations("dots", "<dots_function_call>", "</dots_function_call>"),
    invocations("minimax_m2", "<minimax:tool_call>", "</minimax:tool_call>"),
    invocations(
        "deepseek_v32", "<｜DSML｜function_calls>", "</｜DSML｜function_calls>", "｜DSML｜", "typed"
    ),
    invocations(
        "deepseek_v4", "<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>", "｜DSML｜", "typed"
    ),
    invocations("deepseek_v41", "<｜DSML｜ calls>", "</｜DSML｜ calls>", "｜DSML｜ ", "typed"),
    _json_list("hunyuan_a13b", "<tool_calls>", "</tool_calls>"),
    replace(
        _json_objects("minimax_m1", "", ""),
        trigger="<tool_calls>", begin="<tool_calls>\n", call_end="}", separator="\n",
        end="\n</tool_calls>",
    ),
    _json_list("nemotron", "<TOOLCALL>", "</TOOLCALL>"),
    _json_objects("granite-20b-fc", "<function_call> ", ""),
    _json_objects("internlm", "<|action_start|><|plugin|>\n", "<|action_end|>"),
    _json_objects("longcat", "<longcat_tool_call>", "</longcat_tool_call>"),
    replace(
        _json_objects("gigachat3", "<|function_call|>", ""),
        other_triggers=(
            "<|message_sep|>\n\nfunction call<|role_sep|>", "function call<|role_sep|>",
        ),
    ),
    replace(
        _json_objects("k2_horizon", "<ifm|tool_call>", "</ifm|tool_call>"),
        trigger="<ifm|tool_calls>", begin="<ifm|tool_calls>", end="</ifm|tool_calls>",
    ),
    replace(
        _json_objects("inkling", "<|content_invoke_tool_json|>", "<|end_message|>"),
        name_end='", "args": ', separator="<|message_model|>",
    ),
    replace(
        MISTRAL_JSON,
        name="xlam",
        trigger='[{"name": "',
        begin="[",
        only_at_start=True,
        other_triggers=(*LOOSE_MARKS, "```json"),
    ),
    replace(MISTRAL_JSON, name="firefunction", trigger="functools", begin="functools["),
    replace(
        LLAMA_JSON,
        name="phi4_mini_json",
        name_end='", "arguments": ',
        separator=",",
        other_triggers=("functools[", *LOOSE_MARKS),
    ),
)  # fmt: skip
# All formats by name.
FORMATS = {form.name: form for form in _ALL}
