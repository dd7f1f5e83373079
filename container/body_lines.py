"""Reads the lines of bodies: plain text, JSON Lines and CSV. Raises MalformedRequest."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from container.errors import MalformedRequest

CSV_COLUMNS = ("inputs", "question", "context")
csv.field_size_limit(2**31 - 1)  # the body's own limit bounds it; Python's default is 131072
# Commas in a line of CSV, those in texts included; more columns take seconds to create.
MAX_COMMAS = 1_000_000
# Iterates over the lines of a body; a server's lets others run between two lines.
Pieces = Callable[[Iterable[Any]], Iterable[Any]]


def read_lines(body: bytes, *, pieces: Pieces = iter) -> list[bytes]:
    """Split JSON Lines into records, skipping blank lines.

    Lines end with a line feed, or, in a body without one between them, with a carriage return.
    """
    between = body.strip()
    if b"\r" in between and b"\n" not in between:
        body = body.replace(b"\r", b"\n")
    return [line for line in pieces(io.BytesIO(body)) if line.strip()]


def text(body: bytes) -> str:
    """Decode UTF-8, with or without a byte order mark. Raises MalformedRequest."""
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedRequest(f"the body is not UTF-8: {error}") from None


def has_csv_header(body: bytes) -> bool:
    """Whether the first line of a CSV body names a known column."""
    first, _, _ = body.partition(b"\n")
    cells = next(csv.reader(_csv_lines(text(first).strip())), []) if first.strip() else []
    return bool({cell.strip() for cell in cells} & set(CSV_COLUMNS))


def csv_rows(
    body: bytes, columns: list[str] | None = None, *, pieces: Pieces = iter
) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV body by the names of their columns. Raises MalformedRequest.

    `columns` are the names of a body without a header line.
    """
    reader = csv.reader(pieces(_csv_lines(text(body))))
    try:
        header = columns or [name.strip() for name in next(reader, [])]
        if not set(header) & set(CSV_COLUMNS):
            raise MalformedRequest(
                "the CSV needs a header line with at least one of the columns "
                f"{', '.join(CSV_COLUMNS)}"
            )
        for number, row in enumerate(reader, 1 if columns else 2):
            if row and len(row) != len(header):
                raise MalformedRequest(
                    f"line {number} has {len(row)} columns, but the header has {len(header)}"
                )
            if row:
                yield dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise MalformedRequest(f"the body is not CSV: {error}") from None


def _csv_lines(written: str) -> Iterator[str]:
    for line in io.StringIO(written, newline=""):
        if line.count(",") > MAX_COMMAS:
            raise MalformedRequest(f"a line of the CSV has more than {MAX_COMMAS} commas")
        yield line
