"""Tool call formats whose arguments are pairs of a name and a value between marks."""

from dataclasses import replace

from container.text.tool_calls.syntax import (
    INDEX,
    JSON_TYPES,
    KEY,
    ArgumentStyle,
    PairMarks,
    ToolFormat,
)


def invocations(name: str, mark: str, end: str, tag: str = "", pairs: str = "") -> ToolFormat:
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


QWEN_XML = ToolFormat(
    "qwen_xml",
    trigger="<tool_call>",
    call_begin="<tool_call>\n<function=",
    name_end=">\n",
    call_end="</function>\n</tool_call>",
    separator="\n",
    arguments=ArgumentStyle.XML,
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
IQUEST = replace(
    GLM47,
    name="iquest_q1",
    trigger="<iquest_tool_call>",
    call_begin="<iquest_tool_call>",
    call_end="</iquest_tool_call>",
)
STEP3 = ToolFormat(
    "step3",
    trigger="<｜tool_calls_begin｜>",
    begin="<｜tool_calls_begin｜>",
    call_begin='<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="',
    name_end='">',
    call_end="</steptml:invoke><｜tool_call_end｜>",
    separator="\n",
    end="<｜tool_calls_end｜>",
    arguments=ArgumentStyle.XML,
    pairs=PairMarks('<steptml:parameter name="', ('">',), "</steptml:parameter>"),
    optional="function<｜tool_sep｜>",
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
