"""JSON Schemas of tools in simpler forms, for chat templates that know a few keywords only.

Each remedy is a pure function from a schema to one that describes the same to the model.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from container.text.tool_calls.value_types import resolve

Schema = dict[str, Any]
Remedy = Callable[[Schema], Schema]

MAX_DEPTH = 12
MAX_NODES = 4000
_MAPS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_DEFINITIONS = ("$defs", "definitions")
_DATA = ("enum", "const", "default", "examples", "example", "required", "dependentRequired")
_CHOICES = ("anyOf", "oneOf", "allOf")


def mapped(schema: Schema, change: Callable[[Schema], Schema]) -> Schema:
    """Return a schema with all of its subschemas changed, the inner ones first."""
    changed: Schema = _mapped(schema, change)
    return changed


def _mapped(schema: Any, change: Callable[[Schema], Schema]) -> Any:
    if isinstance(schema, list):
        return [_mapped(item, change) for item in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {}
    for key, value in schema.items():
        if key in _MAPS and isinstance(value, dict):
            changed[key] = {name: _mapped(child, change) for name, child in value.items()}
        else:
            changed[key] = value if key in _DATA else _mapped(value, change)
    return change(changed)


def inline_refs(schema: Schema) -> Schema:
    """Write definitions in the place of references to them; recursive ones stay references."""
    if "$ref" not in json.dumps(schema):
        return schema
    inlined: Schema = _Inlining(schema).inline(schema, ())
    if "$ref" not in json.dumps(inlined):
        return {key: value for key, value in inlined.items() if key not in _DEFINITIONS}
    return inlined


class _Inlining:
    def __init__(self, root: Schema) -> None:
        self._root = root
        self._num_nodes = 0

    def inline(self, node: Any, seen: tuple[str, ...]) -> Any:
        self._num_nodes += 1
        if isinstance(node, list):
            return [self.inline(item, seen) for item in node]
        if not isinstance(node, dict):
            return node
        ref = node.get("$ref")
        if isinstance(ref, str) and ref not in seen and len(seen) < MAX_DEPTH:
            target = resolve(ref, self._root) if ref.startswith("#/") else None
            if isinstance(target, dict) and self._num_nodes < MAX_NODES:
                siblings = {key: value for key, value in node.items() if key != "$ref"}
                return self.inline(target | siblings, (*seen, ref))
        return {
            key: value if key in _DEFINITIONS else self.inline(value, seen)
            for key, value in node.items()
        }


def merge_choices(schema: Schema) -> Schema:
    """List the properties of all branches at the top, where templates look for them."""
    merged = dict(schema)
    for key, choice in _choices(schema):
        branch = merge_choices(choice)
        if isinstance(properties := branch.get("properties"), dict):
            merged["properties"] = properties | (merged.get("properties") or {})
        if key == "allOf" and isinstance(branch.get("required"), list):
            required = dict.fromkeys([*(merged.get("required") or []), *branch["required"]])
            merged["required"] = list(required)
    return merged


def _choices(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Yield the schemas that a schema combines, with the keyword that combines them."""
    for key in _CHOICES:
        choices = schema.get(key)
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, dict):
                yield key, choice


def fill(schema: Schema) -> Schema:
    """Add the keywords that templates expect of each property, and drop those that are null."""
    return mapped(_with_object(schema), _filled)


def _with_object(schema: Schema) -> Schema:
    return {"type": "object", "properties": {}, "required": []} | schema


def _filled(schema: Schema) -> Schema:
    schema = {
        key: value
        for key, value in schema.items()
        if value is not None or key in ("const", "default")
    }
    properties = schema.get("properties")
    if isinstance(properties, dict):
        schema["properties"] = {name: _described(child) for name, child in properties.items()}
        schema.setdefault("required", [])
    return schema


def _described(schema: Any) -> Schema:
    known: Schema = schema if isinstance(schema, dict) else {}
    return {"type": type_of(known), "description": ""} | known


def type_of(schema: Schema) -> str:
    """Return the type of a schema that may have none, or several: the first that is not null."""
    types: Any = schema.get("type")
    if isinstance(types, str):
        return types
    if isinstance(types, list):
        return next((name for name in types if name != "null"), "null")
    for _, choice in _choices(schema):
        if (name := type_of(choice)) not in ("null", "any"):
            return name
    return "object" if "properties" in schema else "any"


def single_types(schema: Schema) -> Schema:
    """Write one type where a list of them stands, and no schemas that are booleans."""
    return mapped(schema, _with_one_type)


def _with_one_type(schema: Schema) -> Schema:
    if isinstance(types := schema.get("type"), list):
        schema = schema | {"type": type_of(schema)}
        schema |= {"nullable": True} if "null" in types else {}
    if schema.get("items") is False:
        schema = {key: value for key, value in schema.items() if key != "items"}
    for key in _MAPS:
        if isinstance(children := schema.get(key), dict):
            children = {name: {} if child is True else child for name, child in children.items()}
            schema = schema | {key: children}
    return schema


def nested_as_text(schema: Schema) -> Schema:
    """Write nested schemas into the descriptions, and keep only types beside them."""
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return schema
    return schema | {"properties": {name: _flat(child) for name, child in properties.items()}}


def _flat(schema: Any) -> Any:
    plain = ("type", "description", "enum", "title", "default", "format")
    if not isinstance(schema, dict) or not schema.keys() - set(plain):
        return schema
    kept = {key: value for key, value in schema.items() if key in plain}
    nested = {key: value for key, value in schema.items() if key not in ("description", "title")}
    written = json.dumps(nested, ensure_ascii=False)
    description = f"{kept.get('description') or ''} JSON Schema: {written}".strip()
    return kept | {"type": type_of(schema), "description": description}


# From the mildest to the strongest.
REMEDIES: list[Remedy] = [inline_refs, merge_choices, fill, single_types, nested_as_text]
