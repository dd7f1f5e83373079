"""The lines of bodies: JSON Lines and CSV."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import TypeVar

import pytest

from container import body_lines, content
from container.errors import MalformedRequest

T = TypeVar("T")


def test_csv_rows_without_a_header_have_the_names_that_are_given() -> None:
    assert not body_lines.has_csv_header(b"Hello\n")
    assert not body_lines.has_csv_header(b"")
    assert body_lines.has_csv_header(b'"inputs" , id\r\na,1\r\n')
    assert list(body_lines.csv_rows(b'"a, b"\nc\n', ["inputs"])) == [
        {"inputs": "a, b"},
        {"inputs": "c"},
    ]


@pytest.mark.parametrize("body", [b"inputs" + b",a" * 1_000_001, b"inputs\n" + b"," * 1_000_001])
def test_a_line_of_very_many_columns_is_refused_unread(body: bytes) -> None:
    with pytest.raises(MalformedRequest, match="more than 1000000 commas"):
        list(body_lines.csv_rows(body))
    with contextlib.suppress(MalformedRequest):
        assert body_lines.has_csv_header(body)


@pytest.mark.parametrize(
    "body",
    [b"inputs\n" + b"\n" * 3000, b'inputs\n"' + b"\n" * 3000 + b'"'],
    ids=["blank", "quoted"],
)
def test_others_may_run_between_the_lines_of_a_body(body: bytes) -> None:
    seen = []

    def pieces(lines: Iterable[T]) -> Iterator[T]:
        for line in lines:
            seen.append(line)
            yield line

    assert len(list(body_lines.csv_rows(body, pieces=pieces))) <= 1
    assert len(seen) >= 3000
    seen.clear()
    assert body_lines.read_lines(b"\n" * 3000 + b"{}\r\n", pieces=pieces) == [b"{}\r\n"]
    assert len(seen) == 3001


@pytest.mark.parametrize("end", [b"\r", b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [b"", b"\n", b"\r"])
def test_lines_may_end_with_any_line_end(end: bytes, last: bytes) -> None:
    body = end.join([b'{"a": 1}', b"", b"[2]"]) + last
    assert content.decode(body, "application/jsonlines") == {"inputs": [{"a": 1}, [2]]}
    table = end.join([b"inputs", b"one", b"two"]) + last
    assert content.decode(table, "text/csv") == {"inputs": ["one", "two"]}
    assert body_lines.has_csv_header(table)
