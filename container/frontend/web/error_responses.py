"""Error responses: one table for each API dialect maps our errors to status codes and bodies."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from traceback import extract_tb
from typing import Any

import msgspec
from flask import Response, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from container import errors
from container.errors import InternalError, MalformedRequest, ServingError, payload_too_large

log = logging.getLogger(__name__)

Body = dict[str, Any]
# Of a message and of a field's name, in bytes of JSON: a body stays under 1 KB.
MESSAGE_BYTES, FIELD_BYTES = 700, 150
OPENAI_PATHS = (
    "/v1/", "/v2/", "/openai/", "/embeddings", "/chat/", "/pooling", "/score", "/classify",
)  # fmt: skip
ANTHROPIC_PATHS = ("/v1/messages",)
TEI_PATHS = ("/embed", "/embed_all", "/embed_sparse", "/similarity", "/predict", "/rerank")


class Dialect(Enum):
    """The APIs whose error objects differ."""

    TGI = "tgi"
    TEI = "tei"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"


class ClientDisconnected(Exception):
    """The client has closed its connection before the answer was whole."""


class ErrorResponse(Response):
    """The answer to a request that failed, and why."""

    def __init__(self, body: Body, status: int, error: ServingError) -> None:
        super().__init__(msgspec.json.encode(body), status, mimetype="application/json")
        self.error = error


class DialectError(Exception):
    """An error, and the dialect to answer it in, where the body decides that, not the path."""

    def __init__(self, error: Exception, dialect: Dialect) -> None:
        super().__init__(str(error))
        self.error = error
        self.dialect = dialect


@dataclass(frozen=True, slots=True)
class TgiForm:
    """Status, `error_type` and the prefix of TGI's message."""

    status: int
    error_type: str
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class OpenAIForm:
    """Status, `type` and `code` of OpenAI's error object."""

    status: int
    type: str
    code: str | None = None


@dataclass(frozen=True, slots=True)
class AnthropicForm:
    """Status and `type` of Anthropic's error object."""

    status: int
    type: str


_VALIDATION = TgiForm(422, "validation", "Input validation error: ")
TGI = {
    errors.MalformedRequest: TgiForm(400, "validation", "Input validation error: "),
    errors.UnsupportedMediaType: TgiForm(415, "validation"),
    errors.NotAcceptable: TgiForm(406, "validation"),
    errors.NotFound: TgiForm(404, "not_found"),
    errors.Conflict: TgiForm(409, "conflict"),
    errors.PayloadTooLarge: TgiForm(413, "validation"),
    errors.Unauthorized: TgiForm(401, "unauthorized"),
    errors.InvalidParameter: _VALIDATION,
    errors.UnsupportedParameter: _VALIDATION,
    errors.PromptTooLong: _VALIDATION,
    errors.TemplateFailed: TgiForm(422, "template_error", "Template error: "),
    errors.Overloaded: TgiForm(429, "overloaded", "Model is overloaded: "),
    errors.NotEnoughMemory: TgiForm(507, "out_of_memory"),
    errors.Unavailable: TgiForm(503, "unavailable"),
    errors.GenerationFailed: TgiForm(424, "generation", "Request failed during generation: "),
    errors.HandlerFailed: TgiForm(500, "handler"),
    errors.DeadlineExceeded: TgiForm(504, "timeout"),
    errors.InternalError: TgiForm(500, "internal"),
}

# Text Embeddings Inference (router/src/http/server.rs, its table of statuses): too long is 413, and
# a model of another kind is a backend error.
_TEI_VALIDATION = TgiForm(422, "Validation", "Input validation error: ")
TEI = TGI | {
    errors.InvalidParameter: _TEI_VALIDATION,
    errors.UnsupportedParameter: _TEI_VALIDATION,
    errors.PromptTooLong: TgiForm(413, "Validation", "Input validation error: "),
    errors.NotFound: TgiForm(424, "Backend"),
    errors.Overloaded: TgiForm(429, "Overloaded", "Model is overloaded: "),
    errors.Unavailable: TgiForm(503, "Unhealthy"),
}

_INVALID = "invalid_request_error"
OPENAI = {
    errors.MalformedRequest: OpenAIForm(400, _INVALID),
    errors.UnsupportedMediaType: OpenAIForm(415, _INVALID),
    errors.NotAcceptable: OpenAIForm(406, _INVALID),
    errors.NotFound: OpenAIForm(404, _INVALID, "not_found"),
    errors.Conflict: OpenAIForm(409, _INVALID, "conflict"),
    errors.PayloadTooLarge: OpenAIForm(413, _INVALID),
    errors.Unauthorized: OpenAIForm(401, _INVALID, "invalid_api_key"),
    errors.InvalidParameter: OpenAIForm(400, _INVALID),
    errors.UnsupportedParameter: OpenAIForm(400, _INVALID, "unsupported_parameter"),
    errors.PromptTooLong: OpenAIForm(400, _INVALID, "context_length_exceeded"),
    errors.TemplateFailed: OpenAIForm(400, _INVALID),
    errors.Overloaded: OpenAIForm(429, "rate_limit_error", "rate_limit_exceeded"),
    errors.NotEnoughMemory: OpenAIForm(507, "server_error"),
    errors.Unavailable: OpenAIForm(503, "service_unavailable_error"),
    errors.GenerationFailed: OpenAIForm(500, "server_error"),
    errors.HandlerFailed: OpenAIForm(500, "server_error"),
    errors.DeadlineExceeded: OpenAIForm(504, "server_error"),
    errors.InternalError: OpenAIForm(500, "server_error"),
}

_BAD_REQUEST = AnthropicForm(400, "invalid_request_error")
_API_ERROR = AnthropicForm(500, "api_error")
ANTHROPIC = {
    errors.MalformedRequest: _BAD_REQUEST,
    errors.UnsupportedMediaType: AnthropicForm(415, "invalid_request_error"),
    errors.NotAcceptable: AnthropicForm(406, "invalid_request_error"),
    errors.NotFound: AnthropicForm(404, "not_found_error"),
    errors.Conflict: AnthropicForm(409, "invalid_request_error"),
    errors.PayloadTooLarge: AnthropicForm(413, "request_too_large"),
    errors.Unauthorized: AnthropicForm(401, "authentication_error"),
    errors.InvalidParameter: _BAD_REQUEST,
    errors.UnsupportedParameter: _BAD_REQUEST,
    errors.PromptTooLong: _BAD_REQUEST,
    errors.TemplateFailed: _BAD_REQUEST,
    errors.Overloaded: AnthropicForm(429, "rate_limit_error"),
    errors.NotEnoughMemory: AnthropicForm(507, "api_error"),
    errors.Unavailable: AnthropicForm(503, "overloaded_error"),
    errors.GenerationFailed: _API_ERROR,
    errors.HandlerFailed: _API_ERROR,
    errors.DeadlineExceeded: AnthropicForm(504, "timeout_error"),
    errors.InternalError: _API_ERROR,
}


# TGI's clients use the status if they do not know the type.
ROUTING_TYPES = {404: "not_found", 405: "method_not_allowed"}


def tgi_body(error: ServingError) -> Body:
    """Return TGI's error object, for a response or an event of a stream."""
    form = TGI[type(error)]
    return {"error": form.prefix + shorten(error.message), "error_type": form.error_type}


def tei_body(error: ServingError) -> Body:
    """Return TEI's error object."""
    form = TEI[type(error)]
    return {"error": form.prefix + shorten(error.message), "error_type": form.error_type}


def openai_body(error: ServingError) -> Body:
    """Return OpenAI's error object, for a response or an event of a stream."""
    form = OPENAI[type(error)]
    inner = {
        "message": shorten(error.message),
        "type": form.type,
        "param": None if error.field is None else shorten(error.field, FIELD_BYTES),
        "code": form.code,
        "http_status_code": form.status,
    }
    return {"error": inner}


def anthropic_body(error: ServingError) -> Body:
    """Return Anthropic's error object, for a response or an event of a stream."""
    inner = {"type": ANTHROPIC[type(error)].type, "message": shorten(error.message)}
    return {"type": "error", "error": inner}


FORMS: dict[Dialect, Mapping[type[ServingError], Any]]
FORMS = {Dialect.TGI: TGI, Dialect.TEI: TEI, Dialect.OPENAI: OPENAI, Dialect.ANTHROPIC: ANTHROPIC}
WRITERS = {Dialect.TGI: tgi_body, Dialect.TEI: tei_body, Dialect.OPENAI: openai_body,
           Dialect.ANTHROPIC: anthropic_body}  # fmt: skip


def shorten(text: str, num_bytes: int = MESSAGE_BYTES) -> str:
    """Cut the middle out of a text whose JSON has more bytes than that."""
    half, shown = num_bytes // 2, text
    while len(msgspec.json.encode(shown)) > num_bytes:
        shown = f"{text[:half]} ... {text[-half:]}"
        half = half * 3 // 4
    return shown


def json_bytes(body: Body) -> bytes:
    """Write an error object."""
    return msgspec.json.encode(body)


@contextmanager
def errors_in(dialect: Dialect) -> Iterator[None]:
    """Answer the errors of a block in a dialect; those of an inner block keep theirs."""
    try:
        yield
    except (ClientDisconnected, DialectError):
        raise
    except Exception as error:
        raise DialectError(error, dialect) from error


def split(error: Exception, default: Dialect) -> tuple[Exception, Dialect]:
    """Return an error without its dialect, and the dialect to answer it in."""
    return (error.error, error.dialect) if isinstance(error, DialectError) else (error, default)


def dialect_of_path(path: str) -> Dialect:
    """Return the dialect of a route."""
    if path.startswith(ANTHROPIC_PATHS):
        return Dialect.ANTHROPIC
    if path.startswith(OPENAI_PATHS):
        return Dialect.OPENAI
    return Dialect.TEI if path in TEI_PATHS else Dialect.TGI


def error_response(error: ServingError, dialect: Dialect) -> Response:
    """Answer an error in a dialect."""
    return _respond(WRITERS[dialect](error), FORMS[dialect][type(error)].status, error)


def unhealthy(error: ServingError) -> Response:
    """Answer a look at the server's health: TGI's type for it, and the real reason."""
    body = {"error": shorten(error.message), "error_type": "healthcheck"}
    return _respond(body, TGI[type(error)].status, error)


def to_client_error(error: Exception) -> ServingError:
    """Turn an exception into an error for the client; log the unexpected ones."""
    if isinstance(error, ServingError) and type(error) in TGI:
        return error
    if isinstance(error, RequestEntityTooLarge):
        return payload_too_large(request.max_content_length)
    if isinstance(error, RecursionError):  # only what clients write is nested without a limit
        where = ", ".join(frame.name for frame in extract_tb(error.__traceback__, -3))
        log.warning(
            "frontend: a body is nested too deeply (in %s); the client gets status 400", where
        )
        return MalformedRequest("the body is nested too deeply")
    log.error("frontend: unexpected error; the client gets status 500", exc_info=error)
    return InternalError("internal error; the cause is in the server's log")


def routing_error_response(error: HTTPException) -> Response:
    """Answer Werkzeug's error about the path or the method."""
    message = shorten(f"{request.method} {request.path}: {error.description}")
    code = error.code or 500
    body: Body = {"error": message, "error_type": ROUTING_TYPES.get(code, "validation")}
    dialect = dialect_of_path(request.path)
    if dialect is Dialect.OPENAI:
        inner = {"message": message, "type": _INVALID, "param": None, "code": None}
        body = {"error": inner}
    elif dialect is Dialect.ANTHROPIC:
        kind = "not_found_error" if code == 404 else _INVALID
        body = {"type": "error", "error": {"type": kind, "message": message}}
    response = ErrorResponse(body, code, errors.NotFound(message))
    for name, value in error.get_headers():
        if name == "Allow":
            response.headers[name] = value
    return response


def _respond(body: Body, status: int, error: ServingError) -> Response:
    response = ErrorResponse(body, status, error)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response
