"""Decides whether two JSON Schemas can accept the same value; pure Python."""

import re
from typing import Any

from container.grammar.schema.tree import Schema, target

ALL_TYPES = frozenset({"null", "boolean", "integer", "fraction", "string", "array", "object"})
MAX_DEPTH = 6
# Characters of a pattern that stand for themselves, and are not repeated.
_LITERAL_START = re.compile(r"\^((?:[\w\s/:@#~%&=;,'\"<>!-](?![?*+{]))*)", re.ASCII)
# What Python reads in another way than ECMA-262.
_OTHERWISE = re.compile(r"\[\^?\]|\{,|\\[^\W dDwWsSbBnrtfv0-9]|\(\?[^:=!]")


def are_disjoint(first: Any, second: Any, root: Schema, depth: int = 0) -> bool:
    """Whether it is certain that no value is accepted by both schemas."""
    if first is False or second is False:
        return True
    if depth > MAX_DEPTH or not isinstance(first, dict) or not isinstance(second, dict):
        return False
    first, second = _resolved(first, root), _resolved(second, root)
    for schema, other in ((first, second), (second, first)):
        for key in ("anyOf", "oneOf"):
            options = schema.get(key)
            if isinstance(options, list) and all(
                are_disjoint(option, other, root, depth + 1) for option in options
            ):
                return True
        for part in schema.get("allOf") or []:
            if are_disjoint(part, other, root, depth + 1):
                return True
    common = types_of(first) & types_of(second)
    return all(_differ(name, first, second, root, depth) for name in common)


def telling_properties(first: Any, second: Any, root: Schema) -> list[str]:
    """Return the properties with any of which a value of the first is none of the second.

    [] if the two may share values that are no objects, too.
    """
    if not isinstance(first, dict) or not isinstance(second, dict):
        return []
    first, second = _resolved(first, root), _resolved(second, root)
    if not types_of(first) & types_of(second) <= {"object"}:
        return []
    others = second.get("properties") or {}
    return [
        name
        for name, child in (first.get("properties") or {}).items()
        if _forbids(second, name)
        or (name in others and are_disjoint(child, others[name], root, depth=1))
    ]


def types_of(schema: Schema) -> frozenset[str]:
    """Return the types that a schema's own `type`, `const` and `enum` allow."""
    allowed = ALL_TYPES
    names = schema.get("type")
    if names is not None:
        listed = [names] if isinstance(names, str) else names
        allowed = frozenset(kind for name in listed for kind in _json_types(name))
    values = _values(schema)
    if values is not None:
        allowed &= frozenset(kind for value in values for kind in _json_types_of_value(value))
    return allowed


def _resolved(schema: Schema, root: Schema) -> Schema:
    for _ in range(MAX_DEPTH):
        referred = target(schema, root)
        if not isinstance(referred, dict):
            return schema
        schema = referred | {key: value for key, value in schema.items() if key != "$ref"}
    return schema


def _differ(kind: str, first: Schema, second: Schema, root: Schema, depth: int) -> bool:
    """Whether no value of one type is accepted by both."""
    values, others = _values(first), _values(second)
    if values is not None and others is not None:
        return not any(_is_same(value, other) for value in values for other in others)
    if kind in ("integer", "fraction"):
        return _is_below(first, second) or _is_below(second, first)
    if kind == "object":
        return _objects_differ(first, second, root, depth)
    if kind == "string":
        return _sizes_differ("Length", first, second) or _strings_differ(first, second)
    if kind == "array":
        items = (_first_item(first), _first_item(second))
        has_item = any((schema.get("minItems") or 0) > 0 for schema in (first, second))
        return _sizes_differ("Items", first, second) or (
            has_item and are_disjoint(*items, root, depth + 1)
        )
    return False


def _sizes_differ(unit: str, first: Schema, second: Schema) -> bool:
    low, high = f"min{unit}", f"max{unit}"
    return any(
        type(a.get(low)) is int and type(b.get(high)) is int and a[low] > b[high]
        for a, b in ((first, second), (second, first))
    )


def _strings_differ(first: Schema, second: Schema) -> bool:
    """Whether the patterns of strings exclude each other, or one the other's words."""
    patterns = [schema.get("pattern") for schema in (first, second)]
    if all(isinstance(pattern, str) for pattern in patterns):
        start, other = map(_literal_start, map(str, patterns))
        return not (start.startswith(other) or other.startswith(start))
    for schema, pattern in ((first, patterns[1]), (second, patterns[0])):
        words = [value for value in _values(schema) or [] if isinstance(value, str)]
        if isinstance(pattern, str) and words:
            return not any(may_find(pattern, word) for word in words)
    return False


def may_find(pattern: str, word: str) -> bool:
    """Whether a pattern, as ECMA-262 reads it, may match in a word; true if it is unsure."""
    if not word.isascii() or not word.isprintable() or _OTHERWISE.search(pattern):
        return True
    try:
        return re.search(pattern, word, re.ASCII) is not None
    except (re.error, RecursionError, OverflowError):
        return True


def _literal_start(pattern: str) -> str:
    """Return the text that all matches of a pattern begin with."""
    match = _LITERAL_START.match(pattern)
    if match is None or "|" in pattern:
        return ""
    return match[1]


def _first_item(schema: Schema) -> Any:
    for key in ("prefixItems", "items"):
        items = schema.get(key)
        if isinstance(items, list) and items:
            return items[0]
    items = schema.get("items", True)
    return True if isinstance(items, list) else items


def _objects_differ(first: Schema, second: Schema, root: Schema, depth: int) -> bool:
    for schema, other in ((first, second), (second, first)):
        for name in schema.get("required") or []:
            if _forbids(other, name):
                return True
            if name in (other.get("required") or []):
                a, b = (s.get("properties", {}).get(name, True) for s in (schema, other))
                if are_disjoint(a, b, root, depth + 1):
                    return True
    return False


def _forbids(schema: Schema, name: str) -> bool:
    properties = schema.get("properties") or {}
    if name in properties:
        return properties[name] is False
    patterns = schema.get("patternProperties") or {}
    is_closed = schema.get("additionalProperties") is False
    return is_closed and not any(may_find(pattern, name) for pattern in patterns)


def _is_below(first: Schema, second: Schema) -> bool:
    for high in ("maximum", "exclusiveMaximum"):
        for low in ("minimum", "exclusiveMinimum"):
            a, b = first.get(high), second.get(low)
            if isinstance(a, bool) or isinstance(b, bool) or a is None or b is None:
                continue
            if a < b or (a == b and (high, low) != ("maximum", "minimum")):
                return True
    return False


def _values(schema: Schema) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _is_same(first: Any, second: Any) -> bool:
    """Compare JSON values: true is not 1, but 1.0 is 1."""
    return isinstance(first, bool) == isinstance(second, bool) and bool(first == second)


def _json_types(name: object) -> tuple[str, ...]:
    return ("integer", "fraction") if name == "number" else (str(name),)


def _json_types_of_value(value: Any) -> tuple[str, ...]:
    if value is None:
        return ("null",)
    if isinstance(value, bool):
        return ("boolean",)
    if isinstance(value, int | float):
        return ("integer", "fraction")
    names: dict[type, str] = {str: "string", list: "array", dict: "object"}
    return (names[type(value)],)
