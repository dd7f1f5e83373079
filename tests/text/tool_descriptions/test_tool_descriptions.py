"""Tools are rendered whole wherever a template reads them, and whatever keywords it knows."""

from typing import Any

import pytest

from container.text.message_style import style_of
from container.text.tool_descriptions.fitting import ToolFitter
from container.text.tool_descriptions.placement import Placement, find_placement
from container.text.tool_descriptions.schemas import inline_refs
from tests.support.chats.mini_templates import renderer

USER = {"role": "user", "content": "Hi"}
TURNS = "{%- for m in messages -%}<|{{ m.role }}|>{{ m.content }}FIELD{%- endfor -%}"
IN_SYSTEM = "{%- if m.role == 'system' and LOOK -%}[T]{{ WRITE }}[/T]{%- endif -%}"


def _in_system(look: str, write: str) -> str:
    return TURNS.replace("FIELD", IN_SYSTEM.replace("LOOK", look).replace("WRITE", write))


PLACES = {
    Placement.VARIABLE: TURNS.replace("FIELD", "") + "{{ tools | tojson }}",
    Placement.WITH_SYSTEM: _in_system("tools", "tools | tojson"),
    Placement.FIELD: _in_system("m.tools", "m.tools[0].function | tojson"),
    Placement.TEXT_FIELD: _in_system("m.tools", "m.tools"),
}
# Templates that print the properties one by one, as far as they know them.
PROPERTIES = (
    "{%- for t in tools -%}{{ t.function.name }}({%- set ps = t.function.parameters -%}"
    "{%- for k, p in ps.properties.items() -%}{{ BODY }}{%- endfor -%}){%- endfor -%}"
    "{%- for m in messages -%}{{ m.content }}{%- endfor -%}"
)
KNOWS = {
    "types": PROPERTIES.replace("BODY", "k + ': ' + p.type + '; '"),
    "descriptions": PROPERTIES.replace("BODY", "k + ': ' + p.description + '; '"),
    "nested properties": PROPERTIES.replace("BODY", "k + ': ' + (p.properties or '') | string"),
    "required names": PROPERTIES.replace("BODY", "k + ('!' if k in ps.required else '?')"),
}
INNER = {"type": "object", "properties": {"street": {"type": "string"}}}
PARAMETERS: dict[str, dict[str, Any]] = {
    "none": {"type": "object"},
    "plain": {"type": "object", "properties": {"city": {"type": "string"}}},
    "true": {"type": "object", "properties": {"city": True, "n": {}}},
    "null keywords": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": None}},
        "required": None,
    },
    "two types": {"type": "object", "properties": {"city": {"type": ["null", "string"]}}},
    "anyOf": {
        "type": "object",
        "properties": {"city": {"anyOf": [{"type": "null"}, {"type": "string"}]}},
    },
    "reference": {
        "type": "object",
        "properties": {"home": {"$ref": "#/$defs/Home"}},
        "$defs": {"Home": INNER},
    },
    "recursive": {
        "type": "object",
        "properties": {"home": {"$ref": "#"}, "city": {"type": "string"}},
    },
    "branches": {
        "anyOf": [{"properties": {"city": {"type": "string"}}}, {"properties": {"zip": INNER}}]
    },
}
NAMES = {"none": [], "true": ["city", "n"], "reference": ["home"], "branches": ["city", "zip"]}


def _tool(parameters: dict[str, Any]) -> dict[str, Any]:
    function = {"name": "look_up", "description": "Looks.", "parameters": parameters}
    return {"type": "function", "function": function}


@pytest.mark.parametrize("placement", PLACES)
def test_tools_are_placed_where_the_template_reads_them(placement: Placement) -> None:
    render = renderer(PLACES[placement])
    assert find_placement(render) is placement
    fitter = ToolFitter(render, placement)
    system = {"role": "system", "content": "Be brief."}
    for messages in ([USER], [system, USER]):
        fitted = fitter.fit(messages, [_tool(PARAMETERS["plain"])])
        assert fitted is not None
        text = render(*fitted)
        assert text.count("look_up") == 1
        assert all(message["content"] in text for message in messages)


def test_a_template_may_print_tools_as_pythons_list() -> None:
    template = TURNS.replace("FIELD", "") + "{{ tools }}"
    assert find_placement(renderer(template)) is Placement.VARIABLE


def test_a_template_that_renders_no_tools_takes_none() -> None:
    template = "{% if tools and documents %}{{ tools }}{% endif %}{{ messages[0].content }}"
    assert find_placement(renderer(template)) is None
    assert not style_of(template, None, renderer(template)).takes_tools
    assert style_of(template).takes_tools  # whose text alone is read


@pytest.mark.parametrize("keyword", PARAMETERS)
@pytest.mark.parametrize("known", KNOWS)
def test_no_name_is_lost_whatever_the_template_knows(known: str, keyword: str) -> None:
    fitted = ToolFitter(renderer(KNOWS[known]), Placement.VARIABLE).fit(
        [USER], [_tool(PARAMETERS[keyword])]
    )
    assert fitted is not None
    text = renderer(KNOWS[known])(*fitted)
    for name in ["look_up", *NAMES.get(keyword, ["city"])]:
        assert name in text
    if keyword == "reference" and known in ("nested properties", "descriptions"):
        assert "street" in text


def test_tools_that_a_template_renders_stay_as_they_were_sent() -> None:
    tools = [_tool(PARAMETERS["reference"])]
    render = renderer(PLACES[Placement.VARIABLE])
    assert ToolFitter(render, Placement.VARIABLE).fit([USER], tools) == ([USER], tools)


def test_references_are_inlined_within_a_bound() -> None:
    """Each definition has the next one twice: written out, they would be 2 ** 30."""
    twice = {
        f"d{n}": {
            "properties": {"a": {"$ref": f"#/$defs/d{n + 1}"}, "b": {"$ref": f"#/$defs/d{n + 1}"}}
        }
        for n in range(30)
    }
    schema = {"$ref": "#/$defs/d0", "$defs": twice | {"d30": {"type": "string"}}}
    assert len(str(inline_refs(schema))) < 1_000_000
