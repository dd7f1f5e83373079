"""Rewritten schemas accept nothing that the client's schema refuses: random schemas and values."""

import json
import random
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer

from container.errors import InvalidParameter
from container.grammar.forms import schema_answer
from container.grammar.schema.disjoint import are_disjoint
from container.grammar.schema.keywords import normalised
from container.grammar.schema.negation import negation
from container.grammar.schema.satisfiable import find_unsatisfiable
from container.grammar.spec import answer_grammar
from tests.support.servers import DEMO_MODEL

NAMES = ["a", "b", "c"]
WORDS = ["", "x", "xy", "y", "é"]


def _value(rnd: random.Random, depth: int = 2) -> Any:
    kinds = ["null", "bool", "int", "float", "str", "str"] + ["list", "dict", "dict"] * (depth > 0)
    match rnd.choice(kinds):
        case "null":
            return None
        case "bool":
            return rnd.random() < 0.5
        case "int":
            return rnd.randint(-2, 4)
        case "float":
            return rnd.choice([0.5, 1.5, 2.0])
        case "str":
            return rnd.choice(WORDS)
        case "list":
            return [_value(rnd, depth - 1) for _ in range(rnd.randint(0, 2))]
    return {name: _value(rnd, depth - 1) for name in NAMES if rnd.random() < 0.5}


def _schema(rnd: random.Random, depth: int = 3) -> Any:
    if depth == 0 or rnd.random() < 0.1:
        return rnd.choice([True, False, {}, {"type": "string"}, {"const": "x"}, {"minimum": 1}])
    types = ["null", "boolean", "number", "integer", "string", "array", "object"]
    keywords: dict[str, Any] = {
        "type": lambda: rnd.choice([rnd.choice(types), rnd.sample(types, 2)]),
        "const": lambda: rnd.choice([None, True, "x", "xy", 1]),
        "enum": lambda: rnd.sample([*WORDS, None, True, 2, 0.5], 3),
        "required": lambda: rnd.sample(NAMES, rnd.randint(0, 2)),
        "properties": lambda: {n: _schema(rnd, depth - 1) for n in rnd.sample(NAMES, 2)},
        "additionalProperties": lambda: rnd.choice([False, _schema(rnd, depth - 1)]),
        "patternProperties": lambda: {rnd.choice(["^a$", "b|c"]): _schema(rnd, depth - 1)},
        "propertyNames": lambda: rnd.choice(
            [{"pattern": "^[ab]"}, {"pattern": "^z"}, {"enum": ["a", "d"]}, {"maxLength": 1}]
        ),
        "minProperties": lambda: rnd.randint(0, 2),
        "maxProperties": lambda: rnd.randint(0, 3),
        "minimum": lambda: rnd.randint(-1, 2),
        "exclusiveMaximum": lambda: rnd.randint(-1, 3),
        "minLength": lambda: rnd.randint(0, 2),
        "maxItems": lambda: rnd.randint(0, 2),
        "not": lambda: _schema(rnd, depth - 1),
        "if": lambda: _schema(rnd, depth - 1),
        "then": lambda: _schema(rnd, depth - 1),
        "else": lambda: _schema(rnd, depth - 1),
        "oneOf": lambda: [_schema(rnd, depth - 1) for _ in range(rnd.randint(1, 3))],
        "anyOf": lambda: [_schema(rnd, depth - 1) for _ in range(2)],
        "allOf": lambda: [_schema(rnd, depth - 1) for _ in range(2)],
        "dependentRequired": lambda: {rnd.choice(NAMES): rnd.sample(NAMES, 1)},
        "dependentSchemas": lambda: {rnd.choice(NAMES): _schema(rnd, depth - 1)},
    }
    chosen = rnd.sample(list(keywords), rnd.randint(1, 3))
    return {key: keywords[key]() for key in chosen}


def _accepts(schema: Any, value: Any) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(value)


@pytest.mark.parametrize("seed", range(10))
def test_a_rewritten_schema_accepts_no_more(seed: int) -> None:
    rnd = random.Random(seed)
    same = 0
    for _ in range(150):
        schema = _schema(rnd)
        if not isinstance(schema, dict):
            continue
        result = normalised(
            schema, is_strict=False, is_lenient=False, is_known_format=lambda _: True
        )
        is_impossible = find_unsatisfiable(result) is not None
        for _ in range(12):
            value = _value(rnd)
            is_valid = _accepts(schema, value)
            if _accepts(result, value):
                assert is_valid, (schema, result, value)
                assert not is_impossible, (schema, result, value)
                same += 1
            else:
                same += not is_valid
    assert same > 0.9 * 150 * 12 * 0.9


@pytest.mark.parametrize("seed", range(5))
def test_a_negation_is_exact_and_disjoint_schemas_share_nothing(seed: int) -> None:
    rnd = random.Random(seed)
    known = disjoint = 0
    for _ in range(200):
        first, second = _schema(rnd), _schema(rnd)
        negated = negation(first, {})
        known += negated is not None
        is_disjoint = are_disjoint(first, second, {})
        disjoint += is_disjoint
        for _ in range(12):
            value = _value(rnd)
            if negated is not None:
                assert _accepts(negated, value) is not _accepts(first, value), (first, value)
            if is_disjoint:
                both = _accepts(first, value) and _accepts(second, value)
                assert not both, (first, second, value)
    assert known > 20
    assert disjoint > 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_compiled_grammar_accepts_nothing_wrong(seed: int) -> None:
    rnd = random.Random(seed)
    tokenizer = LLTokenizer((DEMO_MODEL / "tokenizer.json").read_text(), eos_token=[2])
    num_compiled = num_accepted = 0
    for schema in (_schema(rnd) for _ in range(60)):
        try:
            grammar = answer_grammar(schema_answer(schema, "f"))
        except InvalidParameter:
            continue
        num_compiled += 1
        start = LLMatcher(tokenizer, grammar, log_level=0)
        for value in (_value(rnd) for _ in range(10)):
            text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
            matcher = start.deep_copy()
            if matcher.consume_tokens(tokenizer.tokenize_str(text)) and matcher.is_accepting():
                num_accepted += 1
                assert _accepts(schema, value), (schema, value)
    assert num_compiled > 25
    assert num_accepted > 100


@pytest.mark.parametrize("count", [1, 3, 5])
def test_unique_choices_come_once(count: int) -> None:
    values = ["a", 1, True, None, "b"][:count]
    schema = {"type": "array", "items": {"enum": values}, "uniqueItems": True, "minItems": 1}
    result = normalised(schema, is_strict=False, is_lenient=False, is_known_format=bool)
    assert "uniqueItems" not in result
    rnd = random.Random(0)
    for _ in range(300):
        value = [rnd.choice([*values, "c"]) for _ in range(rnd.randint(0, 4))]
        is_valid = _accepts(schema, value)
        assert not _accepts(result, value) or is_valid, value
        if count <= 4:
            assert _accepts(result, value) is is_valid, value
        assert _accepts(result, values)


@pytest.mark.parametrize(
    ("items", "most", "is_followed"),
    [
        ({"type": "boolean"}, None, True),
        ({"type": "null"}, None, True),
        ({"const": 3}, None, True),
        ({"type": "integer", "minimum": -2, "maximum": 3}, None, True),
        ({"type": "integer", "minimum": 0, "maximum": 15}, 2, True),
        ({"enum": [*"abcdefgh"]}, None, True),
        ({"enum": [*"abcdefghijklmnop"], "description": "letters"}, 2, True),
        ({"type": ["string", "null"], "enum": ["a", 1, None]}, None, True),
        ({"type": "integer", "enum": [10**400, 1]}, None, True),
        ({"enum": [*"abcdefghijklmnop"]}, None, False),
        ({"type": "integer", "minimum": 0, "maximum": 15}, None, False),
        ({"type": "integer", "minimum": 0}, 2, False),
        ({"enum": [f"{number}" for number in range(50_000)]}, None, False),
        ({"type": "string"}, 2, False),
    ],
)
def test_unique_items_are_followed_where_the_choices_are_few(
    items: dict, most: int | None, is_followed: bool
) -> None:
    schema = {"type": "array", "items": items, "uniqueItems": True}
    schema |= {} if most is None else {"maxItems": most}
    result = normalised(schema, is_strict=False, is_lenient=False, is_known_format=bool)
    assert ("uniqueItems" not in result) is is_followed
    if not is_followed:
        return
    rnd = random.Random(0)
    pool = [*items.get("enum", []), items.get("const", 7), True, False, None, *range(-3, 6), "a"]
    values = [[rnd.choice(pool) for _ in range(rnd.randint(0, 3))] for _ in range(200)]
    distinct = {repr(value): value for value in values}.values()
    accepted = [value for value in distinct if _accepts(result, value)]
    assert len(accepted) > 1
    for value in accepted:
        assert _accepts(schema, value), value


def test_strict_closes_objects_that_are_silent_about_other_keys() -> None:
    def closed(schema: dict[str, Any]) -> dict[str, Any]:
        return normalised(schema, is_strict=True, is_lenient=False, is_known_format=bool)

    inner = {"properties": {"a": {"properties": {"b": {}}}}}
    assert closed(inner)["additionalProperties"] is False
    assert closed(inner)["properties"]["a"]["additionalProperties"] is False
    for own in ({"additionalProperties": True}, {"patternProperties": {"^x": {}}}, {"allOf": [{}]}):
        assert "additionalProperties" not in closed(inner | own) or own == {
            "additionalProperties": True
        }
    assert "additionalProperties" not in closed({"type": "object"})


STRINGS, NUMBERS = ({"type": "array", "items": {"type": kind}} for kind in ("string", "integer"))
DIVIDED: dict[str, tuple[dict[str, Any], list[Any], list[Any]]] = {
    "lists whose first items differ": (
        {"oneOf": [STRINGS | {"minItems": 1}, NUMBERS]}, [["a"], [1], []], [["a", 1], [None]],
    ),
    "patterns that begin otherwise": (
        {"oneOf": [{"type": "string", "pattern": "^ab.*"}, {"type": "string", "pattern": "^ac$"}]},
        ["ab", "abc", "ac"], ["a", "acc"],
    ),
    "a word and a pattern": (
        {"oneOf": [{"const": "none"}, {"type": "string", "pattern": "^[0-9]+$"}]},
        ["none", "12"], ["nones", ""],
    ),
    "no integer but some": (
        {"type": "integer", "not": {"enum": [0, 2]}}, [-1, 1, 3], [0, 2],
    ),
    "no number but one": ({"type": "number", "not": {"const": 1.5}}, [1, 1.4, 2], [1.5]),
    "if a number is one": (
        {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "w": {"type": "boolean"}},
            "required": ["v"],
            "if": {"properties": {"v": {"const": 2}}},
            "then": {"required": ["w"]},
        },
        [{"v": 1}, {"v": 2, "w": True}], [{"v": 2}],
    ),
    "names of a list": (
        {"type": "object", "properties": {"a": {"type": "null"}},
         "propertyNames": {"enum": ["a", "b"]}},
        [{}, {"a": None}, {"a": None, "b": 1}], [{"c": 1}, {"a": 1}],
    ),
    "short names": (
        {"type": "object", "propertyNames": {"maxLength": 2}}, [{"ab": 1}], [{"abc": 1}],
    ),
    "objects that optional properties tell apart": (
        {"oneOf": [
            {"type": "object", "properties": {"a": {"type": "null"}, "c": {}},
             "additionalProperties": False},
            {"type": "object", "properties": {"b": {"type": "null"}},
             "patternProperties": {"^x-": {}}, "additionalProperties": False},
        ]},
        [{"a": None}, {"b": None}, {"c": 1}], [{}, {"a": None, "b": None}, {"d": 1}],
    ),
    "objects of optional kinds": (
        {"oneOf": [
            {"type": "object", "properties": {"k": {"const": kind}, "v": {"type": of}}}
            for kind, of in (("a", "null"), ("b", "boolean"))
        ]},
        [{"k": "a", "v": None}, {"k": "b"}], [{}, {"k": "c"}, {"k": "b", "v": None}],
    ),
    "words and a pattern with escapes": (
        {"oneOf": [{"enum": ["su", "sudo"]}, {"type": "string", "pattern": r"^\{\{.*\}\}$"}]},
        ["su", "{{ x }}"], ["x"],
    ),
    "classes of Unicode": ({"type": "string", "pattern": r"^\p{L}+$"}, ["aé"], ["1", ""]),
    "a bracket in a class": ({"type": "string", "pattern": "^[^[&&]+$"}, ["a"], ["[", "&"]),
}  # fmt: skip


@pytest.mark.parametrize("name", DIVIDED)
def test_schemas_that_exclude_each_other_are_followed(name: str) -> None:
    schema, valid, invalid = DIVIDED[name]
    grammar = answer_grammar(schema_answer(schema, "f"))
    tokens = LLTokenizer("byte")
    for index, value in enumerate(valid + invalid):
        matcher = LLMatcher(tokens, grammar, log_level=0)
        text = json.dumps(value, ensure_ascii=False).encode()
        is_accepted = all(map(matcher.consume_token, text)) and matcher.is_accepting()
        assert is_accepted == (index < len(valid)), value
