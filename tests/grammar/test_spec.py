"""Grammars as clients write them: what is refused says what is wrong, and where."""

from typing import Any

import pytest

from container.errors import InvalidParameter
from container.grammar import spec

SHORT = {"type": "string", "minLength": 3, "maxLength": 1}
RECURSIVE = {
    "properties": {"next": {"$ref": "#/$defs/node"}},
    "$defs": {"node": {"properties": {"next": {"$ref": "#/$defs/node"}}, "not": {}}},
}


@pytest.mark.parametrize(
    ("schema", "keyword", "place"),
    [
        ({"not": {}}, "not", "its top"),
        ({"properties": {"a": {"uniqueItems": True}}}, "uniqueItems", "/properties/a"),
        ({"anyOf": [{}, {"items": {"if": {}}}]}, "if", "/anyOf/1/items"),
        ({"properties": {"a": {"type": "text"}}}, "Invalid type: text", "/properties/a"),
        ({"properties": {"a": {"pattern": "(?=b)c"}}}, "look-ahead", "/properties/a"),
        (
            {"type": "object", "required": ["a"], "properties": {"a": SHORT}},
            "minLength (3)",
            "/properties/a",
        ),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "/$defs/b", "/properties/a"),
        (RECURSIVE, "not", "/$defs/node"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(
    schema: dict[str, Any], keyword: str, place: str
) -> None:
    with pytest.raises(InvalidParameter) as caught:
        spec.from_schema(schema, "response_format")
    assert caught.value.field == "response_format"
    assert keyword in caught.value.message
    assert caught.value.message.endswith(f"(at {place})")


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("{", "not valid JSON"),
        ([], "must be an object"),
        (None, "must be an object"),
        ("3", "must be an object"),
        ({"title": "x" * spec.MAX_CHARACTERS}, "the limit is 500000"),
    ],
)
def test_what_is_no_schema_is_refused(schema: object, said: str) -> None:
    with pytest.raises(InvalidParameter, match=said):
        spec.from_schema(schema, "f")


def test_a_schema_nested_without_end_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(3000):
        schema = {"items": schema}
    with pytest.raises(InvalidParameter, match="nested too deeply"):
        spec.from_schema(schema, "f")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "password"},
        {"type": "array", "uniqueItems": False},
        {"properties": {"format": {"type": "string", "format": "binary"}}},
        '{"type": "object"}',
        {"type": "integer", "format": "int32", "x-order": 3, "example": 1},
    ],
)
def test_annotations_do_no_harm(schema: object) -> None:
    assert spec.from_schema(schema, "f")


@pytest.mark.parametrize("pattern", ["(a", "(?=x)y", r"(a)\1", "[z-a]"])
def test_a_regex_that_cannot_be_followed_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidParameter, match="`f`: the regex is not supported"):
        spec.from_regex(pattern, "f")


def test_a_bad_lark_grammar_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="unknown name"):
        spec.from_lark("start: foo", "f")


def test_a_choice_needs_something_to_choose_from() -> None:
    with pytest.raises(InvalidParameter):
        spec.from_choice([], "f")
    with pytest.raises(InvalidParameter):
        spec.from_choice(["a", ""], "f")
    assert spec.from_choice(['say "hi"\n', "b"], "f")


def test_properties_without_a_type_mean_an_object_where_tgi_is_spoken() -> None:
    schema = {"properties": {"a": {"type": "integer"}}}
    loose = spec.from_schema(schema, "f")
    strict = spec.from_schema(schema, "f", means_object=True)
    assert strict == spec.from_schema({"type": "object"} | schema, "f")
    assert strict != loose
