"""The types and the properties of schemas with alternatives and references."""

from typing import Any

import pytest

from container.text.tool_calls.value_types import ALL_TYPES, property_schema, types_of

STRING, NUMBER = {"type": "string"}, {"type": "number"}


@pytest.mark.parametrize("key", ["anyOf", "allOf", "oneOf"])
def test_a_schema_that_refers_to_itself_takes_no_time(key: str) -> None:
    schema = {key: [{"$ref": "#"}] * 9, "type": "object", "properties": {"a": STRING}}
    assert property_schema(schema, "a", schema) == STRING
    assert property_schema(schema, "b", schema) is None
    assert types_of(schema, schema) == {"object"}


def test_exponential_references_take_no_time() -> None:
    definitions: dict[str, Any] = {
        f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 9} for i in range(8)
    }
    definitions["d8"] = STRING | {"properties": {"a": NUMBER}}
    root = {"$defs": definitions, "$ref": "#/$defs/d0"}
    assert types_of(root, root) == {"string"}
    assert property_schema(root, "a", root) == NUMBER


def test_closed_alternatives_keep_a_propertys_type() -> None:
    parts = [
        {"properties": {name: schema}, "additionalProperties": False}
        for name, schema in (("zip", STRING), ("days", NUMBER))
    ]
    schema = {"type": "object", "anyOf": parts}
    assert property_schema(schema, "zip", schema) == STRING
    assert property_schema(schema, "days", schema) == NUMBER
    assert types_of(property_schema(schema, "other", schema), schema) == ALL_TYPES


def test_undeclared_keys_use_additional_properties() -> None:
    schema = {"allOf": [{"additionalProperties": NUMBER}], "properties": {"a": STRING}}
    assert property_schema(schema, "a", schema) == STRING
    assert property_schema(schema, "b", schema) == NUMBER


def test_declarations_that_differ_are_alternatives() -> None:
    schema = {"oneOf": [{"properties": {"a": STRING}}, {"properties": {"a": NUMBER}}]}
    assert property_schema(schema, "a", schema) == {"anyOf": [STRING, NUMBER]}
