"""Turns the schema of a tool's arguments into pairs, for formats that do not write JSON objects.

Keywords of the whole object become choices of pairs: `$ref` and `allOf` are merged, `anyOf` and
`oneOf` become alternatives. Keywords that pairs cannot express exactly become narrower, so that
all arguments remain valid.
"""

import re
from dataclasses import dataclass
from typing import Any

from container.text.tool_calls.value_types import resolve

Schema = dict[str, Any]
_DEFINITIONS = ("$defs", "definitions")
MAX_ALTERNATIVES = 16


@dataclass(frozen=True, slots=True)
class Pairs:
    """One form of the arguments: the schema of each value, and the required names."""

    values: dict[str, Schema]
    required: list[str]


def alternatives_of(schema: Schema) -> list[Pairs]:
    """Return the forms that arguments may have; never empty."""
    root = {key: schema[key] for key in _DEFINITIONS if key in schema}
    merged = _expand(schema, schema, depth=0)
    possible = [form for form in merged if _is_possible(form)] or merged
    return [_pairs(form, root) for form in possible[:MAX_ALTERNATIVES]]


def _is_possible(form: Schema) -> bool:
    """Whether no name is both required and forbidden."""
    properties = form.get("properties", {})
    return not any(properties.get(name) is False for name in form.get("required", ()))


def _may_be_object(option: object) -> bool:
    return isinstance(option, dict) and "object" in option.get("type", "object")


def _expand(schema: Schema, root: Schema, depth: int) -> list[Schema]:
    """Write a schema as alternatives without `$ref`, `allOf`, `anyOf` and `oneOf` at their top."""
    forms: list[Schema] = [{key: value for key, value in schema.items() if key not in _COMBINED}]
    if depth > 8:
        return forms
    parts = [[part] for part in schema.get("allOf", ())]
    if isinstance(schema.get("$ref"), str):
        parts.append([resolve(schema["$ref"], root)])
    parts += [schema[key] for key in ("anyOf", "oneOf") if isinstance(schema.get(key), list)]
    for options in parts:
        expanded = [
            form
            for option in options
            if _may_be_object(option)
            for form in _expand(option, root, depth + 1)
        ]
        if expanded:
            forms = [_merge(form, option) for form in forms for option in expanded]
    return forms


_COMBINED = {"$ref", "allOf", "anyOf", "oneOf"}


def _merge(first: Schema, other: Schema) -> Schema:
    """Return a schema of what fulfils both."""
    merged = first | other
    for key in ("properties", "patternProperties", "dependentRequired"):
        if key in first and key in other:
            merged[key] = first[key] | other[key]
    if "properties" in first and "properties" in other:
        for name in first["properties"].keys() & other["properties"].keys():
            both = [first["properties"][name], other["properties"][name]]
            is_same = both[0] == both[1]
            merged["properties"][name] = both[0] if is_same else {"allOf": both}
            if False in both:
                merged["properties"][name] = False
    if "required" in first and "required" in other:
        merged["required"] = list(dict.fromkeys(first["required"] + other["required"]))
    if "minProperties" in first and "minProperties" in other:
        merged["minProperties"] = max(first["minProperties"], other["minProperties"])
    return merged


def _pairs(schema: Schema, root: Schema) -> Pairs:
    properties: Schema = dict(schema.get("properties", {}))
    for name in schema.get("required", ()):
        properties.setdefault(name, schema.get("additionalProperties", True))
    values = {
        name: _value(name, value, schema)
        for name, value in properties.items()
        if value is not False
    }
    required = [name for name in values if name in schema.get("required", ())]
    for name, dependents in schema.get("dependentRequired", {}).items():
        required += dependents if name in values else ()
    missing = schema.get("minProperties", 0) - len(set(required))
    optional = [name for name in values if name not in required]
    required += optional[: max(missing, 0)]
    num_optional = schema.get("maxProperties", len(values)) - len(set(required))
    for name in [name for name in optional if name not in required][max(num_optional, 0) :]:
        del values[name]
    return Pairs(
        {name: root | value for name, value in values.items()},
        [name for name in values if name in required],
    )


def _value(name: str, value: object, schema: Schema) -> Schema:
    """Return the schema of a value, those of matching patterns of names included."""
    own = value if isinstance(value, dict) else {}
    patterns = [
        other
        for pattern, other in schema.get("patternProperties", {}).items()
        if isinstance(other, dict) and _matches(pattern, name)
    ]
    return {"allOf": [own, *patterns]} if patterns else own


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error:
        return False
