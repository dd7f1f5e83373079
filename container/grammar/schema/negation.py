"""Rewrites JSON Schema keywords that llguidance lacks into those that it has; pure Python.

`not`, `if` and `oneOf` become alternatives by a schema's negation. Where that cannot be written,
the keyword stays and is refused by name; but branches of `oneOf` that optional properties tell
apart require one of these. No rewriting accepts more than the schema.
"""

from typing import Any

from container.grammar.schema.disjoint import are_disjoint, telling_properties
from container.grammar.schema.tree import Schema, target

TYPES = ("null", "boolean", "number", "string", "array", "object")
# Keywords that describe a schema without changing the values that it accepts.
_ANNOTATIONS = {"title", "description", "default", "examples", "$comment", "$schema", "$id"}
# More alternatives than these multiply beyond any use.
MAX_BRANCHES = 12
_BOUNDS = {
    "minimum": ("number", "exclusiveMaximum", 0),
    "maximum": ("number", "exclusiveMinimum", 0),
    "exclusiveMinimum": ("number", "maximum", 0),
    "exclusiveMaximum": ("number", "minimum", 0),
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
}


def rewritten(schema: Schema, root: Schema) -> Schema:
    """Return a schema without the keywords that can be expressed by others, itself only."""
    schema = dict(schema)
    extra: list[Any] = []
    if "not" in schema:
        negated = negation(schema["not"], root)
        if negated is not None:
            del schema["not"]
            extra.append(negated)
    if "if" in schema:
        extra += _conditional(schema, root)
    elif "then" in schema or "else" in schema:
        schema.pop("then", None)
        schema.pop("else", None)
    for key in ("dependentRequired", "dependentSchemas", "dependencies"):
        extra += _dependent(schema.pop(key)) if isinstance(schema.get(key), dict) else []
    if isinstance(schema.get("oneOf"), list):
        options = _options(schema["oneOf"], root)
        if options is not None:
            del schema["oneOf"]
            extra.append({"anyOf": options})
    return _with_all(schema, extra)


def negation(schema: Any, root: Schema, depth: int = 0) -> Any:
    """Return a schema that accepts what another refuses; None if it cannot be written."""
    if isinstance(schema, bool):
        return not schema
    if not isinstance(schema, dict) or depth > 8:
        return None
    options = []
    for key, value in schema.items():
        if key in _ANNOTATIONS:
            continue
        option = _negated_keyword(key, value, schema, root, depth + 1)
        if option is None:
            return None
        options.append(option)
    options = [option for option in options if option is not False]
    if not options:
        return False
    return options[0] if len(options) == 1 else {"anyOf": options}


def _negated_keyword(key: str, value: Any, schema: Schema, root: Schema, depth: int) -> Any:
    if key in _BOUNDS and type(value) in (int, float):
        return _beyond(key, value)
    match key:
        case "not":
            return value
        case "$ref":
            referred = target(schema, root)
            return None if referred is None else negation(referred, root, depth)
        case "type":
            return _other_types(value)
        case "const" | "enum":
            return _other_values([value] if key == "const" else value)
        case "required":
            return _not_required(value)
        case "properties":
            return _with_other_values(value, root, depth)
        case "allOf" | "anyOf":
            parts = [negation(child, root, depth) for child in value]
            is_known = all(part is not None for part in parts)
            return {"anyOf" if key == "allOf" else "allOf": parts} if is_known else None
    return None


def _beyond(key: str, value: float) -> Any:
    kind, opposite, offset = _BOUNDS[key]
    if value + offset < 0 and kind != "number":
        return False
    return {"type": kind, opposite: value + offset}


def _not_required(names: list[str]) -> Any:
    """Negate `required`."""
    absent = [{"properties": {name: False}} for name in names]
    return {"type": "object", "anyOf": absent} if absent else False


def _with_other_values(properties: dict[str, Any], root: Schema, depth: int) -> Any:
    """Negate `properties`."""
    negated = {name: negation(child, root, depth) for name, child in properties.items()}
    if any(child is None for child in negated.values()):
        return None
    options = [
        {"properties": {name: child}, "required": [name]}
        for name, child in negated.items()
        if child is not False
    ]
    return {"type": "object", "anyOf": options} if options else False


def _other_types(value: Any) -> Any:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or ("integer" in names and "number" not in names):
        return None
    rest = [name for name in TYPES if name not in names]
    return {"type": rest} if rest else False


def _other_values(values: Any) -> Any:
    """Negate an enumeration of strings, numbers, null and booleans."""
    if not isinstance(values, list) or not all(
        value is None or isinstance(value, str | bool | int | float) for value in values
    ):
        return None
    options: list[Any] = [{"type": ["array", "object"]}, *_other_numbers(values)]
    if None not in values:
        options.append({"type": "null"})
    booleans = [b for b in (True, False) if not any(value is b for value in values)]
    if booleans:
        options.append({"enum": booleans})
    words = [value for value in values if isinstance(value, str)]
    options.append({"type": "string"} | ({"pattern": other_words(words)} if words else {}))
    return {"anyOf": options}


def _other_numbers(values: list[Any]) -> list[Schema]:
    """Write the ranges between some numbers; the other values are no numbers."""
    numbers = sorted({v for v in values if isinstance(v, int | float) and not isinstance(v, bool)})
    below = [{"exclusiveMaximum": number} for number in numbers]
    above = [{"exclusiveMinimum": number} for number in numbers]
    ranges = [low | high for low, high in zip([{}, *above], [*below, {}], strict=True)]
    return [{"type": "number"} | limits for limits in ranges]


def other_words(words: list[str]) -> str:
    """Write a regular expression for all strings but these."""
    return f"^{_after('', sorted(set(words)))}$"


def _after(prefix: str, words: list[str]) -> str:
    """Write what may follow a prefix so that the whole is none of the words, which all begin so."""
    rest = [word[len(prefix) :] for word in words]
    heads = sorted({word[0] for word in rest if word})
    if not heads:
        return r"[\s\S]+"
    options = [rf"{any_but(heads)}[\s\S]*"]
    for head in heads:
        longer = [word for word in words if word.startswith(prefix + head)]
        options.append(_escaped(head) + _after(prefix + head, longer))
    return f"({'|'.join(options)})" + ("" if "" in rest else "?")


def any_but(characters: list[str]) -> str:
    """Write any character but these."""
    return f"[^{''.join(map(_escaped, characters))}]"


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else character


def _conditional(schema: Schema, root: Schema) -> list[Any]:
    """Take `if`, `then` and `else` out of a schema; return what stands for them."""
    condition, then, otherwise = schema["if"], schema.get("then", True), schema.get("else", True)
    negated = negation(condition, root)
    if negated is None:
        return []
    for key in ("if", "then", "else"):
        schema.pop(key, None)
    options = [_all(condition, then), _all(negated, otherwise)]
    return [{"anyOf": [option for option in options if option is not False]}]


def _dependent(dependencies: dict[str, Any]) -> list[Any]:
    return [
        {
            "anyOf": [
                {"properties": {name: False}},
                {"required": needed} if isinstance(needed, list) else needed,
            ]
        }
        for name, needed in dependencies.items()
    ]


def _options(branches: list[Any], root: Schema) -> list[Any] | None:
    """Return alternatives that accept what exactly one branch accepts; None if none are known."""
    if all(
        are_disjoint(a, b, root) for index, a in enumerate(branches) for b in branches[index + 1 :]
    ):
        return branches
    if len(branches) > MAX_BRANCHES:
        return None
    options = []
    for index, branch in enumerate(branches):
        others = [
            _excluded(other, branch, root)
            for other_index, other in enumerate(branches)
            if other_index != index and not are_disjoint(branch, other, root)
        ]
        if any(other is None for other in others):
            return None
        if False not in others:
            options.append(_all(branch, *others))
    return options or None


def _excluded(other: Any, branch: Any, root: Schema) -> Any:
    """Return a schema that keeps the values of a branch off another; None if there is none.

    Where the other's negation cannot be written, one of the properties that tell the two apart is
    required; so values that have none of them are left out.
    """
    negated = negation(other, root)
    if negated is not None:
        return negated
    names = telling_properties(branch, other, root)
    return {"anyOf": [{"required": [name]} for name in names]} if names else None


def _all(*schemas: Any) -> Any:
    if any(schema is False for schema in schemas):
        return False
    parts = [schema for schema in schemas if schema is not True]
    if len(parts) == 1:
        return parts[0]
    return {"allOf": parts} if parts else True


def _with_all(schema: Schema, extra: list[Any]) -> Schema:
    """Add schemas that must hold as well."""
    extra = [part for part in extra if part is not True]
    if not extra:
        return schema
    if len(extra) == 1 and isinstance(extra[0], dict) and not extra[0].keys() & schema.keys():
        return schema | extra[0]
    return schema | {"allOf": [*schema.get("allOf", []), *extra]}
