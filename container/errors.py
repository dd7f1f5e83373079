"""Every error that this container raises on purpose: one tree, divided by who caused it.

ServingError
├── ConfigError            start-up: invalid settings; lists every one of them
├── ModelLoadError         start-up: the model cannot be served; names the missing part
├── RequestError           caused by the client; names the field if there is one
│   ├── MalformedRequest   not JSON
│   ├── UnsupportedMediaType
│   ├── NotAcceptable      no content type that the client accepts
│   ├── NotFound           an unknown model, adapter or session, a route of other models
│   ├── Conflict           it exists already
│   ├── PayloadTooLarge
│   ├── Unauthorized
│   ├── InvalidParameter   wrong type or out of range
│   ├── UnsupportedParameter   known to the dialect, not offered here
│   ├── PromptTooLong
│   └── TemplateFailed     no chat template, or it refused the messages
├── Overloaded             at capacity; says when to retry
├── NotEnoughMemory        for another model, on a multi-model endpoint
├── Unavailable            loading, draining, or the engine has exited
├── GenerationFailed       this request only; the cause is in the log
├── HandlerFailed          the user's inference.py raised or died; no traceback in the message
├── DeadlineExceeded       the server's own time limit
└── InternalError          a bug in this server; the cause is in the log

One table per dialect maps each kind to a status code and a body
(container.frontend.web.error_responses). The message is always safe to show to a client.
"""

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """How the container, or a process in it, ends; the documents name the same numbers."""

    DRAINED = 0
    WRONG_SETTINGS = 2
    UNUSABLE_MODEL = 3
    RESTARTS_EXHAUSTED = 4
    FRONTENDS_DIED = 5


class ServingError(Exception):
    """Base class of all errors; never raised itself."""

    kind: ClassVar[str] = "error"

    def __init__(
        self, message: str, *, field: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s


class ConfigError(ServingError):
    """Invalid settings. `errors` has one line for each."""

    kind = "config"
    exit_code = ExitCode.WRONG_SETTINGS

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


class ModelLoadError(ServingError):
    """The model cannot be served."""

    kind = "model_load"
    exit_code = ExitCode.UNUSABLE_MODEL


class RequestError(ServingError):
    """An error caused by the client."""

    kind = "request"


class MalformedRequest(RequestError):
    """The body does not match its content type."""

    kind = "malformed"


class UnsupportedMediaType(RequestError):
    """A content type that this route does not read."""

    kind = "media_type"


class NotAcceptable(RequestError):
    """The client accepts no content type that this route can respond with."""

    kind = "not_acceptable"


class NotFound(RequestError):
    """A model, adapter or session does not exist, or a model does not answer this route."""

    kind = "not_found"


class Conflict(RequestError):
    """A model or adapter exists already."""

    kind = "conflict"


class PayloadTooLarge(RequestError):
    """A body over PAYLOAD_LIMIT."""

    kind = "payload_too_large"


class Unauthorized(RequestError):
    """A missing or wrong API key."""

    kind = "unauthorized"


class InvalidParameter(RequestError):
    """A field of the wrong type or out of its range."""

    kind = "invalid_parameter"


class UnsupportedParameter(RequestError):
    """A field that the dialect knows and this server does not offer."""

    kind = "unsupported_parameter"


class PromptTooLong(RequestError):
    """More tokens than the model or the settings allow."""

    kind = "prompt_too_long"


class TemplateFailed(RequestError):
    """The chat template is missing or refused the messages."""

    kind = "template"


class Overloaded(ServingError):
    """The server is at capacity and cannot accept another request now."""

    kind = "overloaded"


class NotEnoughMemory(ServingError):
    """Not enough memory for another model; the platform unloads one and retries."""

    kind = "not_enough_memory"


class Unavailable(ServingError):
    """The server is loading or draining, or its engine has exited."""

    kind = "unavailable"


class GenerationFailed(ServingError):
    """The engine could not finish this request."""

    kind = "generation_failed"


class HandlerFailed(ServingError):
    """The user's code raised or died; the traceback is in the log."""

    kind = "handler"


class DeadlineExceeded(ServingError):
    """A request exceeded a time limit of this server's settings."""

    kind = "deadline"


class InternalError(ServingError):
    """A bug in this server; the cause is in its log."""

    kind = "internal"


def leaves(root: type[ServingError] = ServingError) -> list[type[ServingError]]:
    """Return every error class that can be raised: those without subclasses."""
    children = root.__subclasses__()
    return [leaf for child in children for leaf in leaves(child)] if children else [root]


def from_kind(
    kind: str, message: str, *, field: str | None = None, retry_after_s: int | None = None
) -> ServingError:
    """Recreate an error on the other side of a process boundary."""
    for leaf in leaves():
        if leaf.kind == kind and leaf is not ConfigError:
            return leaf(message, field=field, retry_after_s=retry_after_s)
    return GenerationFailed(message)


def payload_too_large(limit_bytes: int | None) -> PayloadTooLarge:
    """Build the error for a body over the limit."""
    return PayloadTooLarge(
        f"the body is larger than PAYLOAD_LIMIT allows: {limit_bytes} bytes; send less, or raise "
        "that variable (SageMaker itself takes 25 MB, serverless 4 MB)"
    )


def text_of(error: BaseException) -> str:
    """Return an exception's text, also of one of user code whose text fails or is no Unicode."""
    try:
        return str(error).encode(errors="replace").decode()
    except Exception:
        return ""


def one_line(error: BaseException) -> str:
    """Return an exception as one line: its class, since many messages say little, and its text."""
    text = " ".join(text_of(error).split())[:400]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
