"""Small chat templates, each with what a family's templates refuse or leave out."""

from copy import copy
from functools import cache

from container.text.templates.renderer import TemplateRenderer
from container.text.tokenizer import Tokenizer
from tests.support.servers import DEMO_MODEL

OPEN = "{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
CHATML = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
TOOLS = "{%- if tools -%}[TOOLS]{{ tools | tojson }}[/TOOLS]\n{% endif -%}"


def _each(body: str, *, begin: str = "") -> str:
    return f"{begin}{{%- for m in messages -%}}\n{body}{{%- endfor -%}}{OPEN}"


TEMPLATES = {
    "any role": _each(CHATML),
    "no system, turns alternate": _each(
        "{%- if m.role not in ('user', 'assistant') or (m.role == 'user') != (loop.index0 is even)"
        " -%}{{ raise_exception('no such turn') }}{%- endif -%}" + CHATML
    ),
    "system first only, user needed": _each(
        "{%- if m.role == 'system' and not loop.first -%}{{ raise_exception('system') }}"
        "{%- endif -%}" + CHATML,
        begin="{%- if not messages | selectattr('role', 'equalto', 'user') | list -%}"
        "{{ raise_exception('no query') }}{%- endif -%}",
    ),
    "known roles, calls instead of text": _each(
        "{%- if m.role == 'system' or m.role == 'user' -%}" + CHATML +
        "{%- elif m.tool_calls -%}<call>{{ m.tool_calls | tojson }}</call>"
        "{%- elif m.role == 'assistant' -%}{{ m.content }}"
        "{%- elif m.role == 'tool' -%}<result>{{ m.content }}</result>{%- endif -%}",
        begin=TOOLS,
    ),
    "one call": _each(
        "{%- if m.tool_calls -%}{%- if m.tool_calls | length != 1 -%}"
        "{{ raise_exception('one call') }}{%- endif -%}"
        "{%- set f = m.tool_calls[0].function -%}"
        '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}<|im_end|>\n'
        "{%- else -%}" + CHATML + "{%- endif -%}",
        begin=TOOLS,
    ),
    "ids of nine, turns alternate": (
        TOOLS + "{%- set n = namespace(i=0) -%}{%- for m in messages -%}"
        "{%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) -%}"
        "{%- if (m.role == 'user') != (n.i is even) -%}{{ raise_exception('turns') }}{%- endif -%}"
        "{%- set n.i = n.i + 1 -%}[{{ m.role }}]{{ m.content }}"
        "{%- elif m.tool_calls -%}{%- for c in m.tool_calls -%}"
        "{%- if c.id | length != 9 -%}{{ raise_exception('id') }}{%- endif -%}"
        '[CALL]{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
        "{{ c.id }}{%- endfor -%}"
        "{%- elif m.role == 'tool' -%}[RESULT]{{ m.content }}{{ m.tool_call_id }}"
        "{%- else -%}{{ raise_exception('role') }}{%- endif -%}{%- endfor -%}" + OPEN
    ),
    "arguments one by one": _each(
        CHATML + "{%- for c in m.tool_calls or [] -%}<function={{ c.function.name }}>"
        "{%- for key, value in c.function.arguments | items -%}"
        "<parameter={{ key }}>{{ value }}</parameter>{%- endfor -%}</function>{%- endfor -%}",
        begin=TOOLS,
    ),
    "arguments joined": _each(
        CHATML + "{%- for c in m.tool_calls or [] -%}"
        "{{ '<call>' + c.function.name + ' ' + c.function.arguments + '</call>' }}{%- endfor -%}",
        begin=TOOLS,
    ),
    "arguments printed": _each(
        CHATML + "{%- for c in m.tool_calls or [] -%}"
        "<call>{{ c.function.name }} {{ c.function.arguments }}</call>{%- endfor -%}",
        begin=TOOLS,
    ),
    "ids only": _each(
        CHATML + "{%- for c in m.tool_calls or [] -%}<call>{{ c.id }} "
        "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}"
        "{{ c.function.arguments | tojson }}{% endif %}</call>{%- endfor -%}",
        begin=TOOLS,
    ),
    "results with names": _each(
        "{%- if m.role == 'tool' and not m.name -%}{{ raise_exception('name') }}{%- endif -%}"
        + CHATML + "{%- for c in m.tool_calls or [] -%}<call>{{ c.function | tojson }}</call>"
        "{%- endfor -%}",
        begin=TOOLS,
    ),
    "tools but no calls": _each(CHATML, begin=TOOLS),
    "a developer": _each(
        "{%- if m.role == 'developer' -%}<|im_start|>guide\n{{ m.content }}<|im_end|>\n"
        "{%- elif m.role in ('user', 'assistant', 'system') -%}" + CHATML +
        "{%- else -%}{{ raise_exception('role') }}{%- endif -%}"
    ),
    "no empty answers": _each(
        "{%- if m.role == 'assistant' and not m.content and not m.tool_calls -%}"
        "{{ raise_exception('empty') }}{%- endif -%}" + CHATML
    ),
    "arguments as texts only": _each(
        CHATML + "{%- for c in m.tool_calls or [] -%}{{ '<call>' + c.function.name }}"
        "{%- for key, value in c.function.arguments.items() -%}"
        "{{ '<' + key + '>' + value }}{%- endfor -%}{%- endfor -%}",
        begin=TOOLS,
    ),
    "the last message": CHATML.replace("m.", "messages[-1].") + OPEN,
    "thoughts cut": _each(
        "{%- set text = m.content.split('</think>')[-1] if m.role == 'assistant' else m.content -%}"
        "<|im_start|>{{ m.role }}\n{{ text }}<|im_end|>\n",
    ) + "{%- if add_generation_prompt -%}<think>\n{% endif -%}",
}  # fmt: skip

# Some modules make their tokenizers when they are imported; each process takes a second to start.
_RENDERER = TemplateRenderer()


@cache
def _demo_tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(DEMO_MODEL)


def tokenizer_with(template: str) -> Tokenizer:
    """The demo model's tokenizer with another chat template."""
    inner = copy(_demo_tokenizer().inner)
    inner.chat_template = template
    return Tokenizer(inner, renderer=_RENDERER)
