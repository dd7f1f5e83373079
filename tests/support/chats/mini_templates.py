"""Small chat templates, each with the shape of one family's calls, and a renderer for them."""

import json
from collections.abc import Callable
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

TURNS = """
{%- if tools %}{{ '[SYS]' }}{% for t in tools %}{{ t.function | tojson }}{% endfor %}{% endif -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{ '<|u|>' + m.content + '<|end|>' }}
{%- elif m.role == 'tool' -%}{{ '<|t|>' + m.content + '<|end|>' }}
{%- elif m.role == 'assistant' -%}{{ '<|a|>' }}REASONING{{ m.content or '' }}
{%- if m.tool_calls -%}CALLS{%- endif -%}{{ '<|end|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|a|>' }}{%- endif -%}
"""
EACH = "{%- for c in m.tool_calls -%}{%- set f = c.function -%}CALL{%- endfor -%}"
PAIRS = "{%- for k, v in f.arguments.items() -%}PAIR{%- endfor -%}"
RAW = "{{ v if v is string else v | tojson }}"


def _each(call: str, begin: str = "", end: str = "") -> str:
    return begin + EACH.replace("CALL", call) + end


def _pairs(before: str, pair: str, after: str) -> str:
    return before + PAIRS.replace("PAIR", pair) + after


COMMA = "{{ ', ' if not loop.last }}"
# The texts that write the calls, by family.
CALLS = {
    "objects in tags": _each(
        "{{ '\\n<call>\\n' }}{{ {'name': f.name, 'arguments': f.arguments} | tojson }}"
        "{{ '\\n</call>' }}"
    ),
    "list in tags": _each(
        "{{ {'name': f.name, 'arguments': f.arguments, 'id': c.id} | tojson }}" + COMMA,
        "<calls>[",
        "]</calls>",
    ),
    "list after a word": _each(
        '{{ \'{"id": "\' ~ loop.index0 ~ \'", "tool": "\' + f.name + \'", "args": \' }}'
        "{{ f.arguments | tojson }}{{ '}' }}" + COMMA,
        "<|action|>[",
        "]<|/action|>",
    ),
    "name as key": _each(
        "{{ '{\"' + f.name + '\": ' }}{{ f.arguments | tojson }}{{ '}' }}" + COMMA,
        "<|pre|>[",
        "]<|post|>",
    ),
    "name and index in marks": _each(
        "{{ '<|b|>functions.' + f.name + ':' ~ loop.index0 ~ '<|args|>' }}"
        "{{ f.arguments | tojson }}<|e|>",
        "<|calls|>",
        "<|/calls|>",
    ),
    "id in marks": _each(
        "{{ '<|b|>' + c.id + '<|name|>' + f.name + '<|args|>' }}{{ f.arguments | tojson }}<|e|>",
        "<|calls|>",
        "<|/calls|>",
    ),
    "bare object": _each(
        "{{ '{\"name\": \"' + f.name + '\", \"parameters\": ' }}{{ f.arguments | tojson }}{{ '}' }}"
    ),
    "parameter elements": _each(
        _pairs(
            "{{ '\\n<call>\\n<fn=' + f.name + '>\\n' }}",
            "{{ '<par=' + k + '>\\n' }}" + RAW + "{{ '\\n</par>\\n' }}",
            "{{ '</fn>\\n</call>' }}",
        )
    ),
    "keys and values": _each(
        _pairs(
            "{{ '<call>' + f.name }}",
            "{{ '<k>' + k + '</k><v>' }}" + RAW + "{{ '</v>' }}",
            "{{ '</call>' }}",
        )
    ),
    "typed parameters": _each(
        _pairs(
            "{{ '<inv name=\"' + f.name + '\">\\n' }}",
            "{{ '<p name=\"' + k + '\" text=\"' + ('yes' if v is string else 'no') + '\">' }}"
            + RAW
            + "{{ '</p>\\n' }}",
            "{{ '</inv>\\n' }}",
        ),
        "<calls>{{ '\\n' }}",
        "</calls>",
    ),
    "keys as tags": _each(
        _pairs(
            "{{ '<inv name=\"' + f.name + '\">' }}",
            "{{ '<%' + k + '%>' }}" + RAW + "{{ '</%' + k + '%>' }}",
            "{{ '</inv>' }}",
        ),
        "<calls>",
        "</calls>",
    ),
    "python": _each(
        _pairs("{{ f.name + '(' }}", "{{ k + '=' }}{{ v | tojson }}" + COMMA, "{{ ')' }}") + COMMA,
        "<|py|>[",
        "]<|/py|>",
    ),
    "quoted pairs": _each(
        _pairs(
            "{{ '<|c|>call:' + f.name + '{' }}",
            "{{ k + ':' }}{{ '<q>' + v + '<q>' if v is string else v | tojson }}"
            "{{ ',' if not loop.last }}",
            "{{ '}<c|>' }}",
        )
    ),
    "dumped objects": "<calls>{{ m.tool_calls | tojson }}</calls>",
    "id as attribute": _each(
        "{{ '<call name=\"' + f.name + '\" id=\"' + c.id + '\">' }}"
        "{{ f.arguments | tojson }}</call>"
    ),
    "one call only": (
        "{%- if m.tool_calls | length > 1 -%}{{ raise_exception('one call') }}{%- endif -%}"
        + _each("<|fc|>{{ {'name': f.name, 'arguments': f.arguments} | tojson }}")
    ),
    "arguments as text": _each("{{ '<call>' + f.name + '<args>' + f.arguments + '</call>' }}"),
}


def template_of(calls: str, reasoning: str = "") -> str:
    """Write a whole template around the text that writes the calls."""
    return TURNS.replace("CALLS", calls).replace("REASONING", reasoning)


def renderer(template: str) -> Callable[..., str]:
    """Compile a template as transformers does, as far as these need it."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = _refuse
    compiled = environment.from_string(template)

    def render(
        messages: list[dict[str, Any]], tools: object = None, *, opens_reply: bool = False
    ) -> str:
        return compiled.render(messages=messages, tools=tools, add_generation_prompt=opens_reply)

    return render


def _refuse(reason: str) -> None:
    raise ValueError(reason)
