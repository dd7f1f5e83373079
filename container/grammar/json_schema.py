"""JSON Schemas as grammars: what is enforced, and where a schema asks for more than that.

llguidance follows the draft 2020-12 keywords that say what an instance looks like; the few that it
cannot follow (`not`, `if`, `uniqueItems`, ...) are refused by name, never ignored in silence.
"""

import json
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

from llguidance import LLMatcher

from container.errors import InvalidParameter

Schema = dict[str, Any]

# One space or a line with its indentation: as JSON is usually written. Without a limit a model
# could spend its whole budget on blanks.
WHITESPACE = r"( |\n {0,24}|\n\t{0,8})?"

_OPTIONS = "x-guidance"  # where llguidance reads its own
# Keywords whose value is a schema or a list of them, and those with a schema for each name.
_SCHEMA_KEYS = {
    "items", "additionalItems", "additionalProperties", "contains", "propertyNames", "not", "if",
    "then", "else", "unevaluatedProperties", "unevaluatedItems",
    "allOf", "anyOf", "oneOf", "prefixItems",
}  # fmt: skip
_DEFINITIONS = ("$defs", "definitions")
_MAP_KEYS = {"properties", "patternProperties", "dependentSchemas", *_DEFINITIONS}


def enforced(schema: Schema) -> Schema:
    """The schema without what says nothing about the instance: unknown formats are annotations."""
    copy = dict(schema)
    if not _is_known_format(copy.get("format")):
        del copy["format"]
    if copy.get("uniqueItems") is False:
        del copy["uniqueItems"]
    for path, child in _children(schema):
        _put(copy, path, enforced(child))
    return copy


def with_whitespace(schema: Schema) -> Schema:
    """The schema with this project's rule of blanks, for use inside a Lark grammar."""
    return schema | {_OPTIONS: schema.get(_OPTIONS, {}) | {"whitespace_pattern": WHITESPACE}}


def lenient(schema: Schema) -> Schema:
    """The schema whose keywords that cannot be followed are passed over."""
    return schema | {_OPTIONS: {"lenient": True}}


def options_of(schema: Schema) -> Schema:
    """What of a schema says how it is followed, for a part of it that is followed alone."""
    return {_OPTIONS: schema[_OPTIONS]} if _OPTIONS in schema else {}


def grammar_of(schema: Schema) -> str:
    """llguidance's grammar of a schema that `check` has let through."""
    return LLMatcher.grammar_from_json_schema(
        enforced(schema), overrides={"whitespace_pattern": WHITESPACE}
    )


def check(schema: Schema, field: str) -> None:
    """Raise InvalidParameter that names the keyword and its place, if it cannot be followed."""
    problem = _problem(schema)
    if problem is None:
        return
    where, reason = _locate(schema, "", problem, schema, frozenset())
    raise InvalidParameter(
        f"`{field}`: the schema cannot be followed: {reason} (at {where or 'its top'})", field=field
    )


def _locate(
    schema: Schema, where: str, problem: str, root: Schema, seen: frozenset[str]
) -> tuple[str, str]:
    """The deepest part of a schema that is wrong by itself, as a JSON pointer, and why.

    `seen` has the references that led here, so that a recursive schema has an end.
    """
    definitions = {key: root[key] for key in _DEFINITIONS if key in root}
    for path, child in _children(schema):
        child_problem = _problem(definitions | child)
        reference = str(child.get("$ref"))
        if child_problem is None or reference in seen:
            continue
        target = _target(child, root)
        if target is not None:
            there = reference.removeprefix("#")
            return _locate(target, there, child_problem, root, seen | {reference})
        return _locate(
            child, where + "".join(f"/{step}" for step in path), child_problem, root, seen
        )
    return where, problem


def _target(schema: Schema, root: Schema) -> Schema | None:
    """What a schema refers to, if that is one of the root's definitions."""
    parts = str(schema.get("$ref")).split("/")
    if len(parts) != 3 or parts[0] != "#" or parts[1] not in _DEFINITIONS:
        return None
    target = root.get(parts[1], {}).get(parts[2])
    return target if isinstance(target, dict) else None


def _problem(schema: Schema) -> str | None:
    return _problem_of(json.dumps(schema))


@lru_cache(maxsize=512)  # clients send the same schemas and tools again and again
def _problem_of(text: str) -> str | None:
    grammar = LLMatcher.grammar_from_json_schema(enforced(json.loads(text)))
    is_wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    return " ".join(messages[0].split()) if is_wrong else None


def _children(schema: Schema) -> Iterator[tuple[tuple[str | int, ...], Schema]]:
    """The schemas right inside a schema, each with the keys that lead to it."""
    places: list[tuple[tuple[str | int, ...], object]] = []
    for key in _SCHEMA_KEYS & schema.keys():
        value = schema[key]
        if isinstance(value, list):
            places += [((key, index), child) for index, child in enumerate(value)]
        else:
            places.append(((key,), value))
    for key in _MAP_KEYS & schema.keys():
        if isinstance(schema[key], dict):
            places += [((key, name), child) for name, child in schema[key].items()]
    for path, parent in sorted(places, key=lambda pair: str(pair[0])):
        if isinstance(parent, dict):
            yield path, parent


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
    """Whether it can stay: a format that is followed, none at all, or a mistake to be told."""
    return not isinstance(name, str) or _formats(name)
