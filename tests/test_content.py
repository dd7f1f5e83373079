"""Content types in and out, and the choice between them."""

import contextlib
import csv
import io
import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container import content
from container.errors import MalformedRequest, NotAcceptable, ServingError, UnsupportedMediaType

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(deadline=None)
@given(JSON_VALUES)
def test_json_there_and_back(value: object) -> None:
    assert content.decode(content.encode(value, content.JSON), content.JSON) == value


@settings(deadline=None)
@given(st.lists(JSON_VALUES))
def test_json_lines_have_one_line_for_each_record(records: list) -> None:
    written = content.encode(records, content.JSON_LINES)
    assert written.count(b"\n") == len(records)
    assert content.decode(written, "application/x-ndjson") == {"inputs": records}


def test_npy_there_and_back() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    back = content.decode(content.encode(array, content.NPY), content.NPY)
    assert (back == array).all()
    assert back.dtype == array.dtype


def test_a_pickled_array_is_refused() -> None:
    out = io.BytesIO()
    np.save(out, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(MalformedRequest):
        content.decode(out.getvalue(), content.NPY)


def test_csv_columns_become_inputs() -> None:
    assert content.decode(b'inputs\n"a, b"\nc\n', "text/csv; charset=utf-8") == {
        "inputs": ["a, b", "c"]
    }
    parsed = content.decode(b"question,context\nWho?,Me.\n", content.CSV)
    assert parsed == {"inputs": [{"question": "Who?", "context": "Me."}]}


@pytest.mark.parametrize("body", [b"", b"a,b\n1,2\n", b"inputs\n1,2\n", b"\xff"])
def test_invalid_csv_is_refused_with_the_expected_form(body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        content.decode(body, content.CSV)


def test_csv_of_objects_has_a_header() -> None:
    rows = [{"label": "yes", "score": 0.5}, {"label": "no, never", "score": 0.1}]
    written = content.encode(rows, content.CSV).decode()
    assert list(csv.DictReader(io.StringIO(written))) == [
        {"label": "yes", "score": "0.5"},
        {"label": "no, never", "score": "0.1"},
    ]


def test_numbers_of_numpy_are_json() -> None:
    value = {"score": np.float32(0.5), "ids": np.array([1, 2]), "set": {1}}
    assert json.loads(content.encode(value, content.JSON)) == {
        "score": 0.5,
        "ids": [1, 2],
        "set": [1],
    }


def test_not_a_number_is_an_error_and_no_broken_json() -> None:
    with pytest.raises(ServingError, match="cannot be written"):
        content.encode(float("nan"), content.JSON)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", content.JSON),
        ("*/*", content.JSON),
        ("text/csv", content.CSV),
        ("TEXT/CSV; charset=utf-8", content.CSV),
        ("image/png, text/csv;q=0.5", content.CSV),
        ("text/csv;q=0.1, application/json;q=0.2", content.JSON),
        ("text/*", content.TEXT),
        ("application/*", content.JSON),
        ("application/x-ndjson", content.JSON_LINES),
        ("application/json;q=0, */*", content.JSON),
    ],
)
def test_the_best_type_that_is_offered_is_chosen(accept: str, expected: str) -> None:
    assert content.choose(accept, content.ENCODERS) == expected


def test_unsupported_content_types_are_refused_by_name() -> None:
    with pytest.raises(NotAcceptable, match="text/csv"):
        content.choose("image/png", content.ENCODERS)
    with pytest.raises(UnsupportedMediaType, match="application/jsonlines"):
        content.decode(b"", "application/zip")


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from([*content.DECODERS, "x/y", "a b", ";", ""]))
def test_any_bytes_of_any_type_are_read_or_refused(body: bytes, kind: str) -> None:
    with contextlib.suppress(MalformedRequest, UnsupportedMediaType):
        content.decode(body, kind)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_accept_header_is_answered_or_refused(accept: str) -> None:
    with contextlib.suppress(NotAcceptable):
        assert content.choose(accept, content.ENCODERS) in content.ENCODERS


def test_an_integer_of_too_many_digits_is_named() -> None:
    limit = sys.get_int_max_str_digits()
    assert content.parse_json(b"[" + b"9" * limit + b"]") == [int("9" * limit)]
    message = f"line 1 has an integer of more than {limit} digits; send"
    for body in (b"9" * (limit + 1), b'{"a": [-' + b"9" * (limit + 1) + b"]}"):
        with pytest.raises(MalformedRequest, match=message):
            content.decode(body, "application/jsonlines")
