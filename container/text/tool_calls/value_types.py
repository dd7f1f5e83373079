"""The JSON types that a schema allows, for formats that write strings without quotes."""

from typing import Any

ALL_TYPES = frozenset({"string", "number", "boolean", "null", "object", "array"})
MAX_DEPTH = 20  # of nested parts; below it any type counts
_NAMES = {"integer": "number"}
_TYPE_OF: dict[type, str] = {
    str: "string", bool: "boolean", int: "number", float: "number", type(None): "null",
    dict: "object", list: "array",
}  # fmt: skip


def type_of(value: object) -> str:
    """Return the JSON type of a value."""
    return _TYPE_OF[type(value)]


def types_of(schema: object, root: dict[str, Any] | None = None) -> frozenset[str]:
    """Return the types that a schema allows; `root` has the definitions that it refers to."""
    return _types(schema, root, {}, 0)


def _types(
    schema: object, root: dict[str, Any] | None, known: dict[int, frozenset[str]], depth: int
) -> frozenset[str]:
    """Return the types of a schema. `known` has those of parts by their identity: each counts once.

    A part that refers to itself allows all types there.
    """
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        return ALL_TYPES
    if id(schema) in known:
        return known[id(schema)]
    known[id(schema)] = types = ALL_TYPES
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        types &= {_NAMES.get(name, name) for name in names if isinstance(name, str)}
    options = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(options, list):
        types &= {type_of(option) for option in options}
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            parts = [_types(part, root, known, depth + 1) for part in schema[key]]
            types &= frozenset().union(*parts)
    for part in schema["allOf"] if isinstance(schema.get("allOf"), list) else []:
        types &= _types(part, root, known, depth + 1)
    if isinstance(schema.get("$ref"), str):
        types &= _types(resolve(schema["$ref"], root or schema), root, known, depth + 1)
    known[id(schema)] = types
    return types


def property_schema(schema: object, key: str, root: dict[str, Any]) -> Any:
    """Return the schema of a property, also where only a part of the object's schema has it.

    Several that differ are alternatives; None where the schema does not describe the property.
    """
    parts = _parts(schema, root)
    declared = [_dict(part.get("properties")).get(key) for part in parts]
    if all(option is None for option in declared):
        others = (part.get("additionalProperties") for part in parts)
        declared = [other for other in others if isinstance(other, dict)]
    known: list[Any] = []
    for option in declared:
        if option is not None and option not in known:
            known.append(option)
    if not known:
        return None
    return known[0] if len(known) == 1 else {"anyOf": known}


def _parts(schema: object, root: dict[str, Any]) -> list[dict[str, Any]]:
    """Return an object's schema and those within it that apply to the same object, each once."""
    parts: list[dict[str, Any]] = []
    waiting, seen = [schema], set[int]()
    for each in waiting:  # which grows
        part = follow(each, root)
        if part and id(part) not in seen:
            seen.add(id(part))
            parts.append(part)
            waiting += [
                one for name in ("allOf", "anyOf", "oneOf") for one in _list(part.get(name))
            ]
            waiting += [part[name] for name in ("then", "else") if name in part]
    return parts


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
    for _ in range(MAX_DEPTH):
        if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
            break
        schema = resolve(schema["$ref"], root)
    return schema if isinstance(schema, dict) else {}
