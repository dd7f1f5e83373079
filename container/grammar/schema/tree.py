"""Walks over the subschemas of a JSON Schema; pure Python."""

from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]
Path = tuple[str | int, ...]

# Keywords whose value is a schema or a list of schemas, and those with a schema for each name.
_SCHEMA_KEYS = {
    "items", "additionalItems", "additionalProperties", "contains", "propertyNames", "not", "if",
    "then", "else", "unevaluatedProperties", "unevaluatedItems",
    "allOf", "anyOf", "oneOf", "prefixItems",
}  # fmt: skip
DEFINITIONS = ("$defs", "definitions")
_MAP_KEYS = {"properties", "patternProperties", "dependentSchemas", *DEFINITIONS}


def children(schema: Schema) -> Iterator[tuple[Path, Schema]]:
    """Iterate over the direct subschemas that are objects, each with the keys that lead to it."""
    values: list[tuple[Path, object]] = []
    for key in _SCHEMA_KEYS & schema.keys():
        value = schema[key]
        if isinstance(value, list):
            values += [((key, index), child) for index, child in enumerate(value)]
        else:
            values.append(((key,), value))
    for key in _MAP_KEYS & schema.keys():
        if isinstance(schema[key], dict):
            values += [((key, name), child) for name, child in schema[key].items()]
    for path, child in sorted(values, key=lambda pair: str(pair[0])):
        if isinstance(child, dict):
            yield path, child


def put(schema: Schema, path: Path, child: object) -> None:
    """Replace a direct subschema; the containers between are copied."""
    key, *rest = path
    assert isinstance(key, str)
    if not rest:
        schema[key] = child
        return
    schema[key] = schema[key].copy()
    schema[key][rest[0]] = child


def pointer(where: str, path: Path) -> str:
    """Return the JSON pointer of a subschema."""
    return where + "".join(f"/{step}" for step in path)


def definitions_of(schema: Schema) -> Schema:
    """Return the parts of a root schema that its subschemas refer to."""
    return {key: schema[key] for key in DEFINITIONS if key in schema}


def target(schema: Schema, root: Schema) -> Any:
    """Resolve a schema's `$ref` within the root; None for other schemas and other references."""
    reference = schema.get("$ref")
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    node: Any = root
    for step in reference[1:].split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and step in node:
            node = node[step]
        elif isinstance(node, list) and step.isdecimal() and int(step) < len(node):
            node = node[int(step)]
        else:
            return None
    return node
