"""The JSON types that a schema allows, for formats that write strings without quotes."""

from typing import Any

ALL_TYPES = frozenset({"string", "number", "boolean", "null", "object", "array"})
_NAMES = {"integer": "number"}
_TYPE_OF: dict[type, str] = {
    str: "string", bool: "boolean", int: "number", float: "number", type(None): "null",
    dict: "object", list: "array",
}  # fmt: skip


def type_of(value: object) -> str:
    """Return the JSON type of a value."""
    return _TYPE_OF[type(value)]


def types_of(schema: object, root: dict[str, Any] | None = None, depth: int = 0) -> frozenset[str]:
    """Return the types that a schema allows; `root` has the definitions that it refers to."""
    if not isinstance(schema, dict) or depth > 20:
        return ALL_TYPES
    types = ALL_TYPES
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        types &= {_NAMES.get(name, name) for name in names if isinstance(name, str)}
    options = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(options, list):
        types &= {type_of(option) for option in options}
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            parts = [types_of(part, root, depth + 1) for part in schema[key]]
            types &= frozenset().union(*parts)
    for part in schema["allOf"] if isinstance(schema.get("allOf"), list) else []:
        types &= types_of(part, root, depth + 1)
    if isinstance(schema.get("$ref"), str):
        types &= types_of(resolve(schema["$ref"], root or schema), root, depth + 1)
    return types


def property_schema(schema: object, key: str, root: dict[str, Any], depth: int = 0) -> Any:
    """Return the schema of a property, also where only a part of the object's schema has it.

    Several that differ are alternatives; None where the schema does not declare the property.
    """
    if depth > 20:
        return None
    schema = follow(schema, root)
    parts = [part for name in ("allOf", "anyOf", "oneOf") for part in _list(schema.get(name))]
    parts += [schema[name] for name in ("then", "else") if name in schema]
    found = [property_schema(part, key, root, depth + 1) for part in parts]
    found.append(_dict(schema.get("properties")).get(key))
    known: list[Any] = []
    for option in found:
        if option is not None and option not in known:
            known.append(option)
    if not known:
        return schema.get("additionalProperties")
    return known[0] if len(known) == 1 else {"anyOf": known}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def resolve(reference: str, root: dict[str, Any]) -> object:
    """Return the part of a schema that a local reference names; None if there is none."""
    part: object = root
    for step in reference.removeprefix("#").split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        part = part.get(name) if isinstance(part, dict) else None
    return part


def follow(schema: object, root: dict[str, Any]) -> dict[str, Any]:
    """Follow the references at the top of a schema; return {} for a value that is no schema."""
    for _ in range(20):
        if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
            break
        schema = resolve(schema["$ref"], root)
    return schema if isinstance(schema, dict) else {}
