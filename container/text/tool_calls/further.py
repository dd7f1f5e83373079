"""More tool call formats written by hand, each for the families that vLLM and SGLang name."""

from dataclasses import replace

from container.text.tool_calls.known import (
    GEMMA,
    HERMES,
    LLAMA_JSON,
    LOOSE_MARKS,
    MISTRAL_JSON,
    PYTHONIC,
    QWEN_XML,
)
from container.text.tool_calls.syntax import (
    INDEX,
    JSON_TYPES,
    KEY,
    ArgumentStyle,
    PairMarks,
    ToolFormat,
)


def _json_list(name: str, begin: str, end: str) -> ToolFormat:
    """Describe a JSON list of calls between two marks."""
    return replace(MISTRAL_JSON, name=name, trigger=begin, begin=f"{begin}[", end=f"]{end}")


def _json_objects(name: str, begin: str, end: str) -> ToolFormat:
    """Describe calls that are JSON objects, each between two marks."""
    return replace(
        HERMES,
        name=name,
        trigger=begin.split()[0],
        call_begin=f'{begin}{{"name": "',
        call_end=f"}}{end}",
    )


def _invocations(name: str, mark: str, end: str, tag: str = "", pairs: str = "") -> ToolFormat:
    """Describe <invoke name="..."> elements with <parameter name="..."> elements."""
    return ToolFormat(
        name,
        trigger=mark,
        begin=f"{mark}\n",
        call_begin=f'<{tag}invoke name="',
        name_end='">\n',
        call_end=f"</{tag}invoke>\n",
        end=end,
        arguments=ArgumentStyle.XML,
        pairs=PairMarks(
            f'<{tag}parameter name="',
            _dsml_key_ends() if pairs else ('">',),
            f"</{tag}parameter>\n",
        ),
    )


def _dsml_key_ends() -> tuple[str, ...]:
    return tuple(
        f'" string="{"true" if json_type == "string" else "false"}">' for json_type in JSON_TYPES
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
KIMI_K3 = ToolFormat(
    "kimi_k3",
    trigger="<|open|>tools",
    begin="<|open|>tools<|sep|>",
    call_begin='<|open|>call tool="',
    name_end=f'" index="{INDEX}"<|sep|>',
    call_end="<|close|>call<|sep|>",
    end="<|close|>tools<|sep|>",
    arguments=ArgumentStyle.XML,
    pairs=PairMarks(
        '<|open|>argument key="',
        tuple(f'" type="{json_type}"<|sep|>' for json_type in JSON_TYPES),
        "<|close|>argument<|sep|>",
    ),
    first_index=1,
)
GLM45 = ToolFormat(
    "glm45",
    trigger="<tool_call>",
    call_begin="<tool_call>",
    name_end="\n",
    call_end="</tool_call>",
    separator="\n",
    arguments=ArgumentStyle.XML,
    pairs=PairMarks("<arg_key>", ("</arg_key>\n<arg_value>",), "</arg_value>\n"),
)
GLM47 = replace(
    GLM45,
    name="glm47",
    name_end="",
    separator="",
    pairs=PairMarks("<arg_key>", ("</arg_key><arg_value>",), "</arg_value>"),
)
HUNYUAN_V3 = replace(
    GLM45,
    name="hy_v3",
    trigger="<tool_calls>",
    begin="<tool_calls>\n",
    name_end="<tool_sep>\n",
    end="\n</tool_calls>",
)
SEED = replace(
    QWEN_XML,
    name="seed_oss",
    trigger="<seed:tool_call>",
    call_begin="<seed:tool_call>\n<function=",
    call_end="</function>\n</seed:tool_call>",
    pairs=PairMarks("<parameter=", (">",), "</parameter>\n"),
)
MINICPM5 = replace(
    QWEN_XML,
    name="minicpm5",
    trigger="<function",
    call_begin='<function name="',
    name_end='">',
    call_end="</function>",
    pairs=PairMarks('<param name="', ('">',), "</param>"),
)
MINIMAX_M3 = ToolFormat(
    "minimax_m3",
    trigger="]<]minimax[>[<tool_call>",
    begin="]<]minimax[>[<tool_call>\n",
    call_begin=']<]minimax[>[<invoke name="',
    name_end='">',
    call_end="]<]minimax[>[</invoke>\n",
    end="]<]minimax[>[</tool_call>",
    arguments=ArgumentStyle.XML,
    pairs=PairMarks("]<]minimax[>[<", (">",), f"]<]minimax[>[</{KEY}>"),
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
FURTHER = (
    LFM2,
    OLMO3,
    GRANITE,
    KIMI_K2,
    KIMI_K3,
    GLM45,
    GLM47,
    HUNYUAN_V3,
    SEED,
    MINICPM5,
    MINIMAX_M3,
    GEMMA4,
    COHERE,
    APERTUS,
    _invocations("minimax_m2", "<minimax:tool_call>", "</minimax:tool_call>"),
    _invocations(
        "deepseek_v32", "<｜DSML｜function_calls>", "</｜DSML｜function_calls>", "｜DSML｜", "typed"
    ),
    _invocations(
        "deepseek_v4", "<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>", "｜DSML｜", "typed"
    ),
    _json_list("hunyuan_a13b", "<tool_calls>", "</tool_calls>"),
    _json_list("nemotron", "<TOOLCALL>", "</TOOLCALL>"),
    _json_objects("granite-20b-fc", "<function_call> ", ""),
    _json_objects("internlm", "<|action_start|><|plugin|>\n", "<|action_end|>"),
    _json_objects("longcat", "<longcat_tool_call>", "</longcat_tool_call>"),
    replace(
        _json_objects("gigachat3", "<|function_call|>", ""),
        other_triggers=("function call<|role_sep|>",),
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
)
