"""Request bodies: from bytes to a checked model of the dialect. Errors name the field."""

import json
from typing import Annotated, Any, TypeVar

from flask import Request
from pydantic import BaseModel, ConfigDict, FailFast, ValidationError
from werkzeug.exceptions import ClientDisconnected, HTTPException

from container import content
from container.errors import (
    InvalidParameter,
    MalformedRequest,
    UnsupportedMediaType,
    payload_too_large,
)
from container.frontend.web.json_size import find_excess

JSON_TYPES = ("application/json", "text/json")


class Body(BaseModel):
    """Base of all bodies: types as JSON has them, unknown fields ignored (as TGI and OpenAI do)."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


B = TypeVar("B", bound=Body)
T = TypeVar("T")
# More problems of a body are counted, not listed, since a list of thousands takes seconds.
MAX_LISTED = 200


class FirstProblem(FailFast):
    """Stops the check of a list at its first wrong item."""

    __hash__ = object.__hash__  # members of a union must have one


Items = Annotated[list[T], FirstProblem()]  # every list of a body


def read_object(request: Request) -> dict[str, Any]:
    """Read a JSON object. Raises UnsupportedMediaType or MalformedRequest."""
    kind = request.mimetype
    if kind and kind not in JSON_TYPES and not kind.endswith("+json"):
        raise UnsupportedMediaType(
            f"content type {kind!r} is not supported; send the header "
            "'Content-Type: application/json'"
        )
    raw = read_bytes(request)
    return object_from(raw)


def object_from(raw: bytes, subject: str = "the body") -> dict[str, Any]:
    """Parse a JSON object. Raises MalformedRequest, whose message begins with `subject`."""
    if not raw.strip():
        raise MalformedRequest(f"{subject} is empty; send a JSON object")
    written = raw.decode(json.detect_encoding(raw), errors="replace")
    if (excess := find_excess(written)) is not None:
        raise MalformedRequest(f"{subject} has {excess}; send less")
    value = content.parse_json(raw, subject)
    if not isinstance(value, dict):
        raise MalformedRequest(f"{subject} must be a JSON object, not {_json_type(value)}")
    return value


def read_bytes(request: Request, *, cache: bool = False) -> bytes:
    """Read a whole body. Raises MalformedRequest or PayloadTooLarge."""
    try:
        raw = request.get_data(cache=cache)
    except ClientDisconnected as error:  # the client is away; the request is counted as bad
        raise MalformedRequest("the connection ended before the body was whole") from error
    except HTTPException:
        raise
    except Exception as error:  # gunicorn's own exceptions for chunks that it cannot read
        raise MalformedRequest(f"the body cannot be read: {error}") from error
    limit = request.max_content_length
    if request.content_length is None and limit is not None and len(raw) >= limit:
        # Of a chunked body, Werkzeug reads as much as is allowed and drops the rest.
        raise payload_too_large(limit)
    if request.content_length is not None and len(raw) < request.content_length:
        raise MalformedRequest(
            f"the body ended after {len(raw)} bytes; Content-Length is {request.content_length}"
        )
    return raw


def parse(model: type[B], value: dict[str, Any]) -> B:
    """Check an object against a dialect's model. Raises InvalidParameter for the first problem."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        if error.error_count() > MAX_LISTED:
            message = f"the body has {error.error_count()} problems, too many to name the first"
            raise InvalidParameter(message) from None
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> InvalidParameter:
    errors = error.errors(include_url=False, include_context=False)
    # Of the members of a union, the one that was understood furthest is the one that was meant.
    first = max(errors, key=lambda problem: len(problem["loc"]))
    path = _path(first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    value = first["input"]
    is_typed = first["type"].endswith("_type") and not isinstance(value, int | float)
    suffix = f", not {_json_type(value)}" if is_typed else ""
    more = f" (and {len(errors) - 1} more problems)" if len(errors) > 1 else ""
    return InvalidParameter(f"`{path}`: {message}{suffix}{more}", field=path)


def _path(location: tuple[int | str, ...]) -> str:
    """`messages[0].content`; names of union members, which pydantic adds, are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in ("str", "int", "float", "bool") and not part.startswith("list["):
            path += f".{part}" if path else part
    return path or "body"


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    names |= {int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), "that")
