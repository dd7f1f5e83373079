"""JSON Schemas as grammars: checks a schema for unsupported keywords and converts it.

llguidance enforces the draft 2020-12 keywords that describe an instance; a schema with one of the
few that it cannot enforce (`not`, `if`, `uniqueItems`, ...) is rejected with an error that names
the keyword, never silently accepted.
"""

import json
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

from llguidance import LLMatcher

from container.errors import InvalidParameter

Schema = dict[str, Any]

# One space or a line break with indentation, as in typical JSON. Without a limit a model could
# spend its whole token budget on blanks.
WHITESPACE = r"( |\n {0,24}|\n\t{0,8})?"

_OPTIONS = "x-guidance"  # the key of llguidance's own options
# Keywords whose value is a schema or a list of schemas, and those with a schema for each name.
_SCHEMA_KEYS = {
    "items", "additionalItems", "additionalProperties", "contains", "propertyNames", "not", "if",
    "then", "else", "unevaluatedProperties", "unevaluatedItems",
    "allOf", "anyOf", "oneOf", "prefixItems",
}  # fmt: skip
_DEFINITIONS = ("$defs", "definitions")
_MAP_KEYS = {"properties", "patternProperties", "dependentSchemas", *_DEFINITIONS}


def enforced(schema: Schema) -> Schema:
    """Return the schema without keywords that constrain nothing, such as unknown formats."""
    copy = dict(schema)
    if not _is_known_format(copy.get("format")):
        del copy["format"]
    if copy.get("uniqueItems") is False:
        del copy["uniqueItems"]
    for path, child in _children(schema):
        _put(copy, path, enforced(child))
    return copy


def with_whitespace(schema: Schema) -> Schema:
    """Return the schema with this project's whitespace rule, for use inside a Lark grammar."""
    return schema | {_OPTIONS: schema.get(_OPTIONS, {}) | {"whitespace_pattern": WHITESPACE}}


def lenient(schema: Schema) -> Schema:
    """Return the schema with an option that makes llguidance ignore unsupported keywords."""
    return schema | {_OPTIONS: {"lenient": True}}


def options_of(schema: Schema) -> Schema:
    """Return a schema's llguidance options, for a part of it that is compiled alone."""
    return {_OPTIONS: schema[_OPTIONS]} if _OPTIONS in schema else {}


def grammar_of(schema: Schema) -> str:
    """Convert a schema that has passed `check` to llguidance's grammar."""
    return LLMatcher.grammar_from_json_schema(
        enforced(schema), overrides={"whitespace_pattern": WHITESPACE}
    )


def check(schema: Schema, field: str) -> None:
    """Raise InvalidParameter, naming the keyword and its JSON pointer, if it is unsupported."""
    problem = _problem(schema)
    if problem is None:
        return
    where, reason = _locate(schema, "", problem, schema, frozenset())
    raise InvalidParameter(
        f"`{field}`: the schema is not supported: {reason} (at {where or 'its top'})", field=field
    )


def _locate(
    schema: Schema, where: str, problem: str, root: Schema, visited: frozenset[str]
) -> tuple[str, str]:
    """Find the deepest part of a schema that is invalid alone; return its JSON pointer and why.

    `visited` has the references followed so far, so that recursion in the schema ends.
    """
    definitions = {key: root[key] for key in _DEFINITIONS if key in root}
    for path, child in _children(schema):
        child_problem = _problem(definitions | child)
        reference = str(child.get("$ref"))
        if child_problem is None or reference in visited:
            continue
        target = _target(child, root)
        if target is not None:
            pointer = reference.removeprefix("#")
            return _locate(target, pointer, child_problem, root, visited | {reference})
        return _locate(
            child, where + "".join(f"/{step}" for step in path), child_problem, root, visited
        )
    return where, problem


def _target(schema: Schema, root: Schema) -> Schema | None:
    """Resolve a schema's `$ref` to one of the root's definitions; None for other schemas."""
    parts = str(schema.get("$ref")).split("/")
    if len(parts) != 3 or parts[0] != "#" or parts[1] not in _DEFINITIONS:
        return None
    target = root.get(parts[1], {}).get(parts[2])
    return target if isinstance(target, dict) else None


def _problem(schema: Schema) -> str | None:
    return _problem_of(json.dumps(schema))


@lru_cache(maxsize=512)  # clients send the same schemas and tools repeatedly
def _problem_of(text: str) -> str | None:
    grammar = LLMatcher.grammar_from_json_schema(enforced(json.loads(text)))
    is_wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    return " ".join(messages[0].split()) if is_wrong else None


def _children(schema: Schema) -> Iterator[tuple[tuple[str | int, ...], Schema]]:
    """Iterate over the direct subschemas of a schema, each with the keys that lead to it."""
    values: list[tuple[tuple[str | int, ...], object]] = []
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


def _put(schema: Schema, path: tuple[str | int, ...], child: Schema) -> None:
    key, *rest = path
    assert isinstance(key, str)
    if not rest:
        schema[key] = child
        return
    schema[key] = schema[key].copy()
    schema[key][rest[0]] = child


@cache
def _formats(name: str) -> bool:
    grammar = LLMatcher.grammar_from_json_schema({"type": "string", "format": name})
    return not LLMatcher.validate_grammar_with_warnings(grammar)[0]


def _is_known_format(name: object) -> bool:
    """Whether `format` stays in the schema: supported, absent, or invalid and to be reported."""
    return not isinstance(name, str) or _formats(name)
