"""Gives a client's JSON Schema the form that llguidance reads, keyword by keyword; pure Python."""

import itertools
import json
import math
import re
from collections.abc import Callable
from typing import Any

from container.grammar.schema.lookahead import without_lookahead
from container.grammar.schema.negation import rewritten
from container.grammar.schema.patterns import in_rust, words_of
from container.grammar.schema.tree import Schema, children, put, target

# Beyond this, bounds of integers are taken as this: llguidance cannot write larger ones, and no
# valid number is lost that a double could hold.
MAX_BOUND = 2**53
MAX_ALTERNATIVES = 40
# So many lists of different choices are written out.
MAX_LISTS = 256
_APPLICATORS = {
    "$ref", "allOf", "anyOf", "oneOf", "not", "if", "dependentSchemas", "additionalProperties",
}  # fmt: skip
_NOTES = ("description", "title", "$comment", "examples", "default")
_MAY_BE_NULL = {"const", "default", "examples", "example", "enum"}


def normalised(
    schema: Schema,
    *,
    is_strict: bool,
    is_lenient: bool,
    is_known_format: Callable[[str], bool],
) -> Schema:
    """Rewrite a schema and all its parts.

    `is_strict` adds `additionalProperties: false` to every object with `properties` that says
    nothing else of other keys. `is_lenient` leaves out keywords that are null.
    """

    def visit(part: Schema, *, closes: bool) -> Schema:
        result = {k: v for k, v in part.items() if not (is_lenient and _is_null(k, v))}
        for path, child in children(result):
            is_partial = path[0] in ("allOf", "if", "then", "else", "not", "dependentSchemas")
            put(result, path, visit(child, closes=closes and not is_partial))
        _without_annotations(result, is_known_format)
        _patterns(result)
        _bounds(result)
        _counts(result)
        _unique_choices(result, schema)
        if closes and _is_open(result):
            result["additionalProperties"] = False
        _names(result)
        return rewritten(result, schema)

    return visit(schema, closes=is_strict)


def _is_null(key: str, value: object) -> bool:
    return value is None and (key not in _MAY_BE_NULL or key == "enum")


def _is_open(schema: Schema) -> bool:
    """Whether an object has declared properties and its schema is silent about others."""
    keywords = {
        "additionalProperties",
        "patternProperties",
        "unevaluatedProperties",
        "allOf",
        "$ref",
    }
    return bool(schema.get("properties")) and not keywords & schema.keys()


def _without_annotations(schema: Schema, is_known_format: Callable[[str], bool]) -> None:
    name = schema.get("format")
    if isinstance(name, str) and not is_known_format(name):
        del schema["format"]
    if schema.get("uniqueItems") is False or _at_most(schema.get("maxItems"), 1):
        schema.pop("uniqueItems", None)


def _bounds(schema: Schema) -> None:
    """Read draft 4's `exclusiveMinimum: true`, and cut integers' bounds."""
    for inclusive, exclusive in (
        ("minimum", "exclusiveMinimum"),
        ("maximum", "exclusiveMaximum"),
    ):
        if isinstance(schema.get(exclusive), bool):
            is_exclusive = schema.pop(exclusive)
            if is_exclusive and inclusive in schema:
                schema[exclusive] = schema.pop(inclusive)
        for key in (inclusive, exclusive):
            value = schema.get(key)
            if not isinstance(value, int | float) or abs(value) <= MAX_BOUND:
                continue
            if (value < 0) == (inclusive == "minimum"):
                schema[key] = -MAX_BOUND if value < 0 else MAX_BOUND


def _patterns(schema: Schema) -> None:
    """Write patterns in Rust's syntax, and apply those of properties to the declared ones."""
    if isinstance(schema.get("pattern"), str):
        *others, last = map(in_rust, without_lookahead(schema["pattern"]))
        schema["pattern"] = last
        if others:
            parts = [{"pattern": pattern} for pattern in others]
            schema["allOf"] = [*(schema.get("allOf") or []), *parts]
    by_pattern, properties = schema.get("patternProperties"), schema.get("properties", {})
    if not isinstance(by_pattern, dict) or not isinstance(properties, dict):
        return
    properties, left = dict(properties), {}
    for pattern, child in by_pattern.items():
        try:
            expression = re.compile(pattern)
        except re.error:
            expression = re.compile(r"(?!)")
        for name in filter(expression.search, properties):
            properties[name] = {"allOf": [properties[name], child]}
        words = words_of(pattern)
        # A pattern that nothing undeclared matches would leave a comma with nothing to follow it.
        if words is None or not set(words) <= properties.keys():
            left[in_rust(pattern)] = child
    schema["patternProperties"] = left
    if properties:
        schema["properties"] = properties
    if not left:
        del schema["patternProperties"]


def _counts(schema: Schema) -> None:
    """Write the numbers of properties as alternatives, where they are declared."""
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return
    required = [name for name in schema.get("required") or [] if name in properties]
    rest = [name for name in properties if name not in required]
    least, most = schema.get("minProperties"), schema.get("maxProperties")
    if isinstance(least, int) and rest:
        if least <= len(required):
            del schema["minProperties"]
        elif "anyOf" not in schema and "maxProperties" not in schema:
            missing = least - len(required)
            if 0 < math.comb(len(rest), missing) <= MAX_ALTERNATIVES:
                del schema["minProperties"]
                schema["anyOf"] = [
                    {"required": list(names)} for names in itertools.combinations(rest, missing)
                ]
    is_closed = schema.get("additionalProperties") is False and "patternProperties" not in schema
    if isinstance(most, int) and is_closed and most >= len(properties):
        del schema["maxProperties"]


def _unique_choices(schema: Schema, root: Schema) -> None:
    """Write `uniqueItems` of a few choices as alternatives: each at most once, in any order or,
    if those are more than MAX_LISTS, in the schema's.
    """
    items = schema.get("items")
    items = target(items, root) or items if isinstance(items, dict) else None
    if schema.get("uniqueItems") is not True or schema.get("type") != "array" or not items:
        return
    values = _choices(items)
    if not 0 < len(values) <= MAX_LISTS or _repeats(values):
        return
    if {"anyOf", "prefixItems", "contains"} & schema.keys():
        return
    sizes = range(
        schema.get("minItems", 0), min(schema.get("maxItems", len(values)), len(values)) + 1
    )
    lists = _lists(values, sizes)
    if not lists:
        return
    for keyword in ("uniqueItems", "items", "minItems", "maxItems"):
        schema.pop(keyword, None)
    schema["anyOf"] = [
        {
            "prefixItems": [{"enum": [value]} for value in chosen],
            "items": False,
            "minItems": len(chosen),
        }
        for chosen in lists
    ]


def _lists(values: list[Any], sizes: range) -> list[tuple[Any, ...]]:
    """Return the lists of different values, in any order or the given one; none if too many."""
    for pick, count in (
        (itertools.permutations, math.perm),
        (itertools.combinations, math.comb),
    ):
        if sum(count(len(values), size) for size in sizes) <= MAX_LISTS:
            return [chosen for size in sizes for chosen in pick(values, size)]
    return []


def _choices(items: Schema) -> list[Any]:
    """Return the values that a schema allows, if they are written in it; else none."""
    kind, rules = items.get("type"), items.keys() - {"type", *_NOTES}
    if rules == {"enum"} and isinstance(items["enum"], list):
        return [value for value in items["enum"] if _is_of(value, kind)]
    if rules == {"const"}:
        return [items["const"]]
    if not rules and kind in ("boolean", "null"):
        return [False, True] if kind == "boolean" else [None]
    least, most = items.get("minimum"), items.get("maximum")
    if kind != "integer" or rules != {"minimum", "maximum"}:
        return []
    if not isinstance(least, int) or not isinstance(most, int) or most - least >= MAX_LISTS:
        return []
    return list(range(least, most + 1))


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of a JSON type, or of one of a list; any is where there is none."""
    kinds = [kind] if isinstance(kind, str) else kind
    if not isinstance(kinds, list):
        return True
    classes = {"string": str, "boolean": bool, "object": dict, "array": list, "null": type(None)}
    if isinstance(value, int | float) and not isinstance(value, bool):
        is_whole = isinstance(value, int) or value.is_integer()
        return "number" in kinds or ("integer" in kinds and is_whole)
    return any(isinstance(value, classes[name]) for name in kinds if name in classes)


def _repeats(values: list[Any]) -> bool:
    texts = [json.dumps(value, sort_keys=True) for value in values]
    return len(set(texts)) < len(texts) or any(isinstance(v, float) for v in values)


def _names(schema: Schema) -> None:
    """Apply `propertyNames` with a pattern, and simple `unevaluatedProperties`, to the keys."""
    if "unevaluatedProperties" in schema and not _APPLICATORS & schema.keys():
        schema["additionalProperties"] = schema.pop("unevaluatedProperties")
    names = schema.get("propertyNames")
    if names is True or names == {} or names == {"type": "string"}:
        del schema["propertyNames"]
        return
    if not isinstance(names, dict) or "patternProperties" in schema:
        return
    rules = {key: value for key, value in names.items() if key not in ("type", *_NOTES)}
    if list(rules) == ["enum"] and isinstance(rules["enum"], list):
        _only_names(schema, rules["enum"])
        return
    pattern = _pattern_of_names(rules)
    if pattern is None:
        return
    try:
        allowed = re.compile(pattern)
    except re.error:
        return
    properties = schema.get("properties") or {}
    if not isinstance(properties, dict):
        return
    if any(allowed.search(name) for name in properties):
        return  # llguidance cannot tell a declared key from one that the pattern allows
    other = schema.get("additionalProperties", True)
    del schema["propertyNames"]
    schema["properties"] = dict.fromkeys(properties, False)
    schema["additionalProperties"] = False
    if other is not False:
        schema["patternProperties"] = {pattern: other}


def _only_names(schema: Schema, names: list[Any]) -> None:
    """Allow these names only, as `propertyNames` with an `enum`."""
    properties = schema.get("properties") or {}
    other = schema.get("additionalProperties", True)
    if not isinstance(properties, dict):
        return
    del schema["propertyNames"]
    words = [name for name in names if isinstance(name, str)]
    schema["properties"] = {
        name: child if name in words else False for name, child in properties.items()
    } | {name: other for name in words if name not in properties}
    schema["additionalProperties"] = False


def _pattern_of_names(rules: Schema) -> str | None:
    """Write `propertyNames` as a pattern; None for keywords that are none."""
    if list(rules) == ["pattern"]:
        return rules["pattern"] if isinstance(rules["pattern"], str) else None
    if rules and set(rules) <= {"minLength", "maxLength"}:
        least, most = rules.get("minLength", 0), rules.get("maxLength", "")
        return rf"^[\s\S]{{{least},{most}}}$"
    return None


def _at_most(value: Any, limit: int) -> bool:
    return isinstance(value, int) and value <= limit
