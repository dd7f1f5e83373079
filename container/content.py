"""Content types: decodes and encodes bodies, and negotiates the response's type.

The types are those of SageMaker's Hugging Face inference toolkit 2.6 (`decoder_encoder.py`), plus
JSON Lines and plain text. Parameters such as `; charset=utf-8` are tolerated. Raises
UnsupportedMediaType or NotAcceptable, which list the supported types, or MalformedRequest.
"""

import base64
import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterable
from datetime import date, datetime
from typing import Any

import numpy as np

from container import body_lines
from container.errors import HandlerFailed, MalformedRequest, NotAcceptable, UnsupportedMediaType

JSON, JSON_LINES, TEXT, CSV = "application/json", "application/jsonlines", "text/plain", "text/csv"
NPY, BINARY, EVENTS = "application/x-npy", "application/octet-stream", "text/event-stream"
IMAGES = tuple(f"image/{kind}" for kind in ("jpeg", "png", "tiff", "bmp", "gif", "webp", "x-image"))
AUDIO = tuple(
    f"audio/{kind}" for kind in ("x-flac", "flac", "mpeg", "wave", "wav", "ogg", "x-audio")
)
OTHER_NAMES = {
    "text/json": JSON,
    "application/x-jsonlines": JSON_LINES,
    "application/jsonl": JSON_LINES,
    "application/x-ndjson": JSON_LINES,
    "application/x-text": TEXT,
    "application/csv": CSV,
    "": JSON,
}
# The toolkits pass these to a user's input_fn as str, all other types as bytes.
TEXT_TYPES = (JSON, CSV)
# JSON can write half of a surrogate pair, which is no character and has no UTF-8.
HALF_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def media_type(header: str) -> str:
    """Normalise a Content-Type header: no parameters, lower case, aliases resolved."""
    name = header.partition(";")[0].strip().lower()
    name = JSON if name.endswith("+json") else name
    return OTHER_NAMES.get(name, name)


def decode(body: bytes, content_type: str) -> Any:
    """Decode a body as the Hugging Face toolkit's default input_fn does."""
    kind = media_type(content_type)
    if kind not in DECODERS:
        raise UnsupportedMediaType(
            f"content type {content_type!r} is not supported; supported are {_list(DECODERS)}"
        )
    return DECODERS[kind](body)


def encode(value: Any, kind: str) -> bytes:
    """Encode a prediction as a type that `choose` has returned."""
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    try:
        return ENCODERS[kind](value)
    except (ValueError, TypeError) as error:
        raise HandlerFailed(f"the prediction cannot be written as {kind}: {error}") from error


def choose(accept: str, offered: Iterable[str], default: str = JSON) -> str:
    """Choose the response's type from an Accept header; empty and `*/*` mean the default."""
    known = list(offered)
    accepted = by_quality(accept)
    if not accepted:
        return default
    for name in accepted:
        if name == "*/*":
            return default
        if name in known:
            return name
        if name.endswith("/*"):
            matching = [
                candidate for candidate in [default, *known] if candidate.startswith(name[:-1])
            ]
            if matching:
                return matching[0]
    raise NotAcceptable(f"Accept {accept!r} cannot be answered; offered are {_list(known)}")


def parse_json(body: bytes, subject: str = "the body") -> Any:
    """Parse JSON in UTF-8, UTF-16 or UTF-32, all of whose strings are text.

    Raises MalformedRequest, whose message begins with `subject`.
    """
    try:
        written = body.decode(json.detect_encoding(body))
        value = json.loads(written)
        if HALF_ESCAPE.search(written):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise MalformedRequest(f"{subject} has a lone surrogate such as \\ud800") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRequest(f"{subject} is not valid JSON: {error}") from None
    except ValueError:  # the only one that is left: the time to read one grows with their square
        limit = sys.get_int_max_str_digits()
        raise MalformedRequest(
            f"{subject} has an integer of more than {limit} digits; send a smaller one, or a string"
        ) from None
    return value


def read_csv(body: bytes) -> dict[str, Any]:
    """Decode CSV columns named inputs, or question and context, as `{"inputs": [...]}`."""
    records = list(body_lines.csv_rows(body))
    if records and "inputs" in records[0]:
        return {"inputs": [record["inputs"] for record in records]}
    return {"inputs": records}


def _read_json_lines(body: bytes) -> Any:
    lines = enumerate(body_lines.read_lines(body), 1)
    return {"inputs": [parse_json(line, f"line {number}") for number, line in lines]}


def _read_npy(body: bytes) -> Any:
    try:
        return np.load(io.BytesIO(body), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise MalformedRequest(f"the body is not an NPY array: {error}") from None


def _read_image(body: bytes) -> Any:
    image_module = _pillow()
    try:
        return image_module.open(io.BytesIO(body)).convert("RGB")
    except Exception as error:  # every format fails in its own way
        raise MalformedRequest(f"the body is not an image that can be read: {error}") from None


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise UnsupportedMediaType("images need Pillow: add it to code/requirements.txt") from None
    return Image


def _write_json(value: Any) -> bytes:
    written = json.dumps(
        value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain
    )
    return written.encode()


def _write_json_lines(value: Any) -> bytes:
    records = value if isinstance(value, list | tuple) else [value]
    return b"".join(_write_json(record) + b"\n" for record in records)


def _write_text(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else _write_json(value)


def _write_csv(value: Any) -> bytes:
    """Encode a list as rows; a list of objects gets a header with their keys."""
    rows = value.tolist() if isinstance(value, np.ndarray) else value
    rows = rows if isinstance(rows, list | tuple) else [rows]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if rows and isinstance(rows[0], dict):
        writer.writerow(rows[0])
    for row in rows:
        cells = row.values() if isinstance(row, dict) else row
        writer.writerow(
            cells if isinstance(cells, Iterable) and not isinstance(cells, str) else [cells]
        )
    return out.getvalue().encode()


def _write_npy(value: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, np.asarray(value), allow_pickle=False)
    return out.getvalue()


def _plain(value: Any) -> Any:
    """Convert values that json cannot encode: numpy, tensors, dates, images (base64 PNG)."""
    if isinstance(value, np.generic | np.ndarray) or hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if hasattr(value, "save") and hasattr(value, "mode"):  # an image; Pillow may not be installed
        out = io.BytesIO()
        value.save(out, format="PNG")
        return base64.b64encode(out.getvalue()).decode()
    if isinstance(value, set | frozenset):
        return list(value)
    raise TypeError(f"a {type(value).__name__} cannot be encoded as JSON")


def by_quality(accept: str) -> list[str]:
    """Return the types of an Accept header, best first, without those with q=0."""
    ranked = []
    for index, entry in enumerate(accept.split(",")):
        name, *parameters = entry.split(";")
        quality = 1.0
        for parameter in parameters:
            key, _, number = parameter.strip().partition("=")
            if key == "q":
                try:
                    quality = float(number)
                except ValueError:
                    quality = 0.0
        if name.strip() and quality > 0:
            ranked.append((-quality, index, media_type(name)))
    return [name for _, _, name in sorted(ranked)]


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


DECODERS: dict[str, Callable[[bytes], Any]] = {
    JSON: parse_json,
    JSON_LINES: _read_json_lines,
    TEXT: lambda body: {"inputs": body_lines.text(body)},
    CSV: read_csv,
    NPY: _read_npy,
    BINARY: bytes,
    **dict.fromkeys(IMAGES, _read_image),
    **dict.fromkeys(AUDIO, bytes),
}
ENCODERS: dict[str, Callable[[Any], bytes]] = {
    JSON: _write_json,
    JSON_LINES: _write_json_lines,
    TEXT: _write_text,
    CSV: _write_csv,
    NPY: _write_npy,
    EVENTS: lambda value: b"data: " + _write_json(value) + b"\n\n",
}
