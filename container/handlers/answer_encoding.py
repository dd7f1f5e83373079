"""Encodes the results of user code as the parts of an answer."""

import inspect
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from container import content
from container.errors import HandlerFailed
from container.messages.handler import AnswerHead, AnswerPart

Answer = AnswerHead | AnswerPart

HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
FRAMING = frozenset(
    {
        "connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade",
    }
)  # fmt: skip


def with_content_type(value: Any, chosen: str | None) -> tuple[Any, str | None]:
    """Split sagemaker-inference's `(body, content_type)`; return other values with `chosen`."""
    is_pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], str)
    if is_pair and "/" in value[1] and isinstance(value[0], str | bytes):
        return value[0], value[1]
    return value, chosen


def raw_body(value: Any) -> bytes | None:
    """Return a body that the user's code has encoded; None for an object to encode."""
    if isinstance(value, str):
        return value.encode()
    return bytes(value) if isinstance(value, bytes | bytearray) else None


def is_stream(value: Any) -> bool:
    """Whether a result is a generator, so that it is sent part by part."""
    return isinstance(value, AsyncIterator) or inspect.isgenerator(value)


def stream_content_type(part: Any, accept: str) -> str:
    """Return the content type of a stream, by its first part and the accepted type."""
    if accept in (content.EVENTS, content.JSON_LINES, content.TEXT):
        return accept
    if isinstance(part, str):
        return f"{content.TEXT}; charset=utf-8"
    return content.BINARY if isinstance(part, bytes | bytearray) else content.JSON_LINES


def answer_head(
    request_id: int, status: int, kind: str, is_stream: bool, chosen: Mapping[str, str]
) -> AnswerHead:
    """Return the head of an answer as user code has chosen it, without headers that frame it.

    Raises HandlerFailed for what HTTP does not allow.
    """
    if not 200 <= status < 600:
        raise HandlerFailed(
            f"user code set a status of {str(status)[:20]}; it must be from 200 to 599"
        )
    if not (isinstance(kind, str) and HEADER_VALUE.fullmatch(kind)):
        raise HandlerFailed(f"user code set the content type {kind!r:.100}, which is none")
    headers = {}
    for name, value in chosen.items():
        if not (HEADER_NAME.fullmatch(str(name)) and HEADER_VALUE.fullmatch(str(value))):
            raise HandlerFailed(f"user code set the header {name!r:.100}, which is not HTTP's")
        if str(name).lower() not in FRAMING:
            headers[str(name)] = str(value)
    return AnswerHead(request_id, status, kind, is_stream, headers)


def encode_part(part: Any, kind: str) -> bytes:
    """Encode a part of a stream for its content type."""
    if isinstance(part, bytes | bytearray):
        return bytes(part)
    if content.media_type(kind) == content.EVENTS:
        if isinstance(part, str) and part.startswith(("data:", "event:", ":")):
            return part.encode()
        return b"data: " + content.encode(part, content.JSON) + b"\n\n"
    if isinstance(part, str):
        return part.encode()
    return content.encode(part, content.JSON_LINES)


def refusal(request_id: int, status: int, message: str) -> Iterator[Answer]:
    """Answer with an error whose status the user's code has chosen."""
    body = {"error": message, "error_type": "validation" if status < 500 else "handler"}
    yield AnswerHead(request_id, status, content.JSON, is_stream=False)
    yield AnswerPart(request_id, content.encode(body, content.JSON), is_last=True)
