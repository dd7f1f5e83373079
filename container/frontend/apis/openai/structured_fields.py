"""Structured output under all of its names: OpenAI's, TGI's, vLLM's and SGLang's.

vLLM (entrypoints/openai): `structured_outputs`, before it `guided_*`; SGLang: `regex`, `ebnf`,
`json_schema`. One request has at most one of them.
"""

from typing import Any

from container.errors import InvalidParameter, UnsupportedParameter
from container.frontend.apis.grammar_fields import read_grammar, read_value
from container.frontend.generation.limits import RequestLimits
from container.frontend.web.request_body import Body, Items
from container.grammar.forms import Answer

# The type of each field whose value is the grammar itself.
GRAMMAR_TYPES = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json",
    "regex": "regex",
    "ebnf": "grammar",
}
NESTED_TYPES = ("json", "regex", "choice", "grammar", "json_object")
# Other fields of `structured_outputs`, with the values that mean "off".
NESTED_NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "structural_tag": (None,),
    "whitespace_pattern": (None,),
    "disable_any_whitespace": (None, False),
    "disable_additional_properties": (None, False),
}


class StructuredFields(Body):
    """The fields that hold a grammar; see the module."""

    response_format: dict[str, Any] | None = None
    grammar: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Items[str] | None = None
    guided_grammar: str | None = None
    json_schema: dict[str, Any] | str | None = None
    regex: str | None = None
    ebnf: str | None = None


def read_structured(request: StructuredFields, limits: RequestLimits) -> Answer | None:
    """Return the form of the completion; None where anything goes.

    Raises InvalidParameter or UnsupportedParameter.
    """
    fields = {name: getattr(request, name) for name in StructuredFields.model_fields}
    set_fields = {name: value for name, value in fields.items() if value is not None}
    if (set_fields.get("response_format") or {}).get("type") == "text":
        del set_fields["response_format"]
    if not set_fields:
        return None
    name, *others = set_fields
    if others:
        raise InvalidParameter(f"`{name}` and `{others[0]}` exclude each other", field=others[0])
    value = set_fields[name]
    if name in ("response_format", "grammar"):
        return read_grammar(value, name, limits)
    if name == "structured_outputs":
        kind = _nested_kind(value)
        return read_value(kind, value[kind], f"{name}.{kind}", limits)
    return read_value(GRAMMAR_TYPES[name], value, name, limits)


def _nested_kind(value: dict[str, Any]) -> str:
    field = "structured_outputs"
    for name, neutral in NESTED_NOT_OFFERED.items():
        if value.get(name) not in neutral:
            raise UnsupportedParameter(
                f"`{field}.{name}` is not supported by this server", field=f"{field}.{name}"
            )
    types = [kind for kind in NESTED_TYPES if value.get(kind) not in (None, False)]
    if len(types) != 1:
        names = ", ".join(NESTED_TYPES)
        raise InvalidParameter(f"`{field}` must have exactly one of: {names}", field=field)
    return types[0]
