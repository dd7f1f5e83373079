"""Arguments of calls, cut anywhere."""

import json

import pytest

from container.text.history.arguments import as_object, as_text

ARGUMENTS = {"city": 'Mal"mö', "days": [1, {"a": None}], "ok": True, "far": -12.5}


def test_an_object_is_written_as_json_with_its_letters() -> None:
    assert as_text({"city": "Malmö"}) == '{"city": "Malmö"}'
    assert as_text('{"city": "Ma') == '{"city": "Ma'


@pytest.mark.parametrize("ascii_only", [False, True])
def test_json_that_was_cut_anywhere_is_an_object(ascii_only: bool) -> None:
    text = json.dumps(ARGUMENTS, ensure_ascii=ascii_only)
    for end in range(1, len(text) + 1):
        assert isinstance(as_object(text[:end]), dict)
    assert as_object(text) == ARGUMENTS
    assert as_object(text[:-1]) == ARGUMENTS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"city": "Ro', {"city": "Ro"}),
        ('{"city": "Rome", "da', {"city": "Rome", "da": ""}),
        ('{"city": "Rome", "days"', {"city": "Rome", "days": ""}),
        ('{"city":', {"city": ""}),
        ('{"city": "a, \\', {"city": "a, "}),
        ('{"cities": ["Rome", "Os', {"cities": ["Rome", "Os"]}),
        ('{"a": {"b": 1, "c', {"a": {"b": 1, "c": ""}}),
        ("", {}),
        ("null", {}),
        ('["Rome"]', {"arguments": '["Rome"]'}),
        ("Rome", {"arguments": "Rome"}),
        ("3", {"arguments": "3"}),
    ],
)
def test_arguments_survive_in_the_object(text: str, expected: object) -> None:
    assert as_object(text) == expected
