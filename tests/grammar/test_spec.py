"""Grammars as clients write them: a refusal names the fault and its place."""

from typing import Any

import pytest

from container.errors import InvalidParameter
from container.grammar import forms
from container.grammar.shape import MessageShape, encode_shape
from container.grammar.spec import answer_grammar

SHORT = {"type": "string", "minLength": 3, "maxLength": 1}
RECURSIVE = {
    "properties": {"next": {"$ref": "#/$defs/node"}},
    "$defs": {"node": {"properties": {"next": {"$ref": "#/$defs/node"}}, "uniqueItems": True}},
}
ITSELF = {
    "type": "object",
    "properties": {"x": {"$ref": "#/properties/x"}},
    "required": ["x"],
}
ENDLESS = {
    "$ref": "#/$defs/list",
    "$defs": {
        "list": {
            "type": "object",
            "properties": {"next": {"$ref": "#/$defs/list"}},
            "required": ["next"],
        }
    },
}


@pytest.mark.parametrize(
    ("schema", "keyword", "place"),
    [
        ({"not": {}}, "schema is false", "its top"),
        ({"properties": {"a": {"uniqueItems": True}}}, "uniqueItems", "/properties/a"),
        ({"anyOf": [{}, {"items": {"contains": {}}}]}, "contains", "/anyOf/1/items"),
        ({"properties": {"a": {"not": {"pattern": "a"}}}}, "not", "/properties/a"),
        ({"if": {"format": "date"}, "then": {"minLength": 3}}, "if", "its top"),
        ({"properties": {"a": {"type": "text"}}}, "Invalid type: text", "/properties/a"),
        ({"properties": {"a": {"pattern": "(?=b)c"}}}, "look-ahead", "/properties/a"),
        (
            {"type": "object", "required": ["a"], "properties": {"a": SHORT}},
            "minLength (3)",
            "/properties/a",
        ),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "/$defs/b", "/properties/a"),
        (RECURSIVE, "uniqueItems", "/$defs/node"),
        (ITSELF, "nothing can match", "/properties/x"),
        (ENDLESS, "nothing can match", "its top"),
        ({"enum": []}, "", "its top"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(
    schema: dict[str, Any], keyword: str, place: str
) -> None:
    with pytest.raises(InvalidParameter) as caught:
        answer_grammar(forms.schema_answer(schema, "response_format"))
    assert caught.value.field == "response_format"
    assert keyword in caught.value.message
    assert caught.value.message.endswith(f"(at {place})")


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "not valid JSON"),
        ([], "must be an object"),
        (None, "must be an object"),
        ("3", "must be an object"),
        ({"title": "x" * forms.MAX_CHARACTERS}, "the limit is 500000"),
    ],
)
def test_values_that_are_no_schema_are_refused(schema: object, reason: str) -> None:
    with pytest.raises(InvalidParameter, match=reason):
        forms.schema_answer(schema, "f")


def test_a_schema_nested_without_end_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(3000):
        schema = {"items": schema}
    with pytest.raises(InvalidParameter, match="nested too deeply"):
        forms.schema_answer(schema, "f")


def test_a_schema_of_any_depth_is_sent_or_refused() -> None:
    schema: dict[str, Any] = {}
    for depth in range(1000):
        schema = {"items": schema}
        if depth % 10 == 0 or depth > 900:
            try:
                shape = MessageShape(answer=forms.schema_answer(schema, "f"))
                assert encode_shape(shape)
            except InvalidParameter:
                assert depth > 200


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "password"},
        {"type": "array", "uniqueItems": False},
        {"type": "array", "uniqueItems": True, "maxItems": 1},
        {"properties": {"format": {"type": "string", "format": "binary"}}},
        '{"type": "object"}',
        {"type": "integer", "format": "int32", "x-order": 3, "example": 1},
        {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
        {"properties": {"then": {"if": True, "then": {}}}, "then": {}},
    ],
)
def test_annotations_do_no_harm(schema: object) -> None:
    assert answer_grammar(forms.schema_answer(schema, "f"))


@pytest.mark.parametrize("pattern", ["(a", "(?=x)y", r"(a)\1", "[z-a]"])
def test_a_regex_that_cannot_be_followed_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidParameter, match="`f`: the regex is not supported") as caught:
        answer_grammar(forms.regex_answer(pattern, "f"))
    assert len(caught.value.message) < 1000


def test_a_bad_lark_grammar_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="unknown name"):
        answer_grammar(forms.lark_answer("start: foo", "f"))


def test_a_choice_needs_something_to_choose_from() -> None:
    with pytest.raises(InvalidParameter):
        forms.choice_answer([], "f")
    with pytest.raises(InvalidParameter):
        forms.choice_answer(["a", ""], "f")
    with pytest.raises(InvalidParameter, match="the limit is 20000"):
        forms.choice_answer(["a"] * 20_001, "f")
    assert answer_grammar(forms.choice_answer(['say "hi"\n', "b"], "f"))


def test_tgis_properties_without_a_type_are_an_object() -> None:
    schema = {"properties": {"a": {"type": "integer"}}}
    loose = forms.schema_answer(schema, "f")
    strict = forms.schema_answer(schema, "f", means_object=True)
    assert strict == forms.schema_answer({"type": "object"} | schema, "f")
    assert strict != loose
