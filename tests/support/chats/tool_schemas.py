"""Fifty schemas of tool arguments, each of several keywords drawn at random, that accept something.

Every kind of property is drawn in turn, so that all of them occur with any seed.
"""

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]
COUNT = 50
NAMES = [
    "city",
    "first name",
    "größe",
    "名前",
    "from",
    "x-y",
    "a.b",
    "n",
    "items",
    "id",
    "Über uns",
]
SHORT: Schema = {"type": "string", "maxLength": 5}
DIGIT: Schema = {"type": "integer", "minimum": 0, "maximum": 9}


def _object(properties: dict[str, Schema], *required: str, **keywords: Any) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), **keywords}


def _nested(rnd: random.Random) -> Schema:
    return _object({"b": SHORT, rnd.choice(NAMES[1:5]): DIGIT}, "b", additionalProperties=False)


KINDS: list[Callable[[random.Random], Schema]] = [
    lambda rnd: SHORT,
    lambda rnd: DIGIT,
    lambda rnd: {"type": "boolean"},
    lambda rnd: {"type": "number", "minimum": -1, "exclusiveMaximum": 2},
    lambda rnd: {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 20},
    lambda rnd: {"enum": ["a", "b c", 'd"e', "é"]},
    lambda rnd: {"enum": [1, "1", None, True]},
    lambda rnd: {"const": rnd.choice(["x y", 3, None, False, "<b>"])},
    lambda rnd: {"type": "string", "format": rnd.choice(["date", "ipv4", "uuid", "time"])},
    lambda rnd: {"type": "string", "pattern": "^[a-c]{2,3}$"},
    lambda rnd: {"type": ["string", "null"], "maxLength": 4},
    lambda rnd: {"anyOf": [SHORT, {"type": "null"}]},
    lambda rnd: {"type": ["integer", "string"], "minimum": 0, "maximum": 9, "maxLength": 3},
    lambda rnd: {"type": "array", "items": SHORT, "minItems": 1, "maxItems": 2},
    lambda rnd: {"type": "array", "items": _nested(rnd), "minItems": 1, "maxItems": 2},
    lambda rnd: {"type": "array", "items": {"type": "array", "items": DIGIT, "maxItems": 2},
                 "maxItems": 2},
    lambda rnd: {"type": "array", "prefixItems": [SHORT, DIGIT], "items": False, "minItems": 2},
    lambda rnd: {"type": "array", "items": {"enum": ["p", "q", "r"]}, "uniqueItems": True},
    _nested,
    lambda rnd: {"$ref": "#/$defs/pair"},
    lambda rnd: {"oneOf": [{"type": "string", "maxLength": 3}, {"type": "boolean"}]},
    lambda rnd: {"type": "object", "additionalProperties": DIGIT, "maxProperties": 2},
]  # fmt: skip
DEFS: Schema = {"pair": _object({"l": DIGIT, "r": SHORT}, "l", "r", additionalProperties=False)}


def _properties(rnd: random.Random, index: int) -> dict[str, Schema]:
    """Two or three properties; `index` chooses the first one's kind."""
    names = rnd.sample(NAMES, rnd.randint(2, 3))
    kinds = [KINDS[index % len(KINDS)], *rnd.choices(KINDS, k=len(names) - 1)]
    return {name: kind(rnd) for name, kind in zip(names, kinds, strict=True)}


def _plain(rnd: random.Random, index: int) -> Schema:
    properties = _properties(rnd, index)
    return _object(properties, *rnd.sample([*properties], rnd.randint(1, len(properties))))


def _closed(rnd: random.Random, index: int) -> Schema:
    return _plain(rnd, index) | {"additionalProperties": False}


def _min_properties(rnd: random.Random, index: int) -> Schema:
    properties = _properties(rnd, index)
    return _object(properties, minProperties=2, additionalProperties=False)


def _required_outside(rnd: random.Random, index: int) -> Schema:
    return _object(_properties(rnd, index), "extra", additionalProperties=DIGIT)


def _top_any_of(rnd: random.Random, index: int) -> Schema:
    return {"type": "object", "anyOf": [_closed(rnd, index), _object({"z": DIGIT}, "z")]}


def _top_all_of(rnd: random.Random, index: int) -> Schema:
    properties = _properties(rnd, index)
    first = next(iter(properties))
    return _object(properties, allOf=[{"required": [first]}, _object({"z": DIGIT}, "z")])


def _top_ref(rnd: random.Random, index: int) -> Schema:
    return {"$ref": "#/$defs/all", "$defs": {"all": _closed(rnd, index)}}


SHAPES = [
    _plain, _closed, _min_properties, _required_outside, _top_any_of, _top_all_of, _top_ref,
]  # fmt: skip


def schemas(seed: int = 0) -> list[Schema]:
    """Draw the schemas: each shape and each kind several times."""
    rnd = random.Random(seed)
    drawn = [SHAPES[index % len(SHAPES)](rnd, index) for index in range(COUNT)]
    return [schema | {"$defs": DEFS | schema.get("$defs", {})} for schema in drawn]
