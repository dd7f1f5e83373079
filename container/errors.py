"""Every error this container reports on purpose, as one tree divided by whose fault it is.

ServingError
├── ConfigError            start-up: wrong settings; lists every one of them
├── ModelLoadError         start-up: the model cannot be served; says what is missing
├── RequestError           the client's fault; names the field where there is one
│   ├── MalformedRequest   not JSON
│   ├── UnsupportedMediaType
│   ├── NotAcceptable      no content type that the client takes
│   ├── NotFound           a model, adapter or session that is not here
│   ├── Conflict           it is here already
│   ├── PayloadTooLarge
│   ├── Unauthorized
│   ├── InvalidParameter   wrong type or out of range
│   ├── UnsupportedParameter   known to the dialect, not offered here
│   ├── PromptTooLong
│   └── TemplateFailed     no chat template, or it refused the messages
├── Overloaded             no room now; says when to retry
├── NotEnoughMemory        for another model, on a multi-model endpoint
├── Unavailable            loading, draining, or the engine is gone
├── GenerationFailed       this request only; the cause is in the log
├── HandlerFailed          the user's inference.py raised or died; says what, not where
├── DeadlineExceeded       the server's own time limit
└── InternalError          our own fault; the cause is in the log

A dialect turns a kind into its own status and body in one table
(container.frontend.web.error_responses). The message is always safe to show to a client.
"""

from typing import ClassVar


class ServingError(Exception):
    """Base of the tree; never raised itself."""

    kind: ClassVar[str] = "error"

    def __init__(
        self, message: str, *, field: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s


class ConfigError(ServingError):
    """Wrong settings. `problems` has one line for each."""

    kind = "config"
    exit_code = 2

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ModelLoadError(ServingError):
    """The model cannot be served."""

    kind = "model_load"
    exit_code = 3


class RequestError(ServingError):
    """The client's fault."""

    kind = "request"


class MalformedRequest(RequestError):
    """The body is not what its content type says."""

    kind = "malformed"


class UnsupportedMediaType(RequestError):
    """A content type that this route does not read."""

    kind = "media_type"


class NotAcceptable(RequestError):
    """The client takes no content type that this route can answer with."""

    kind = "not_acceptable"


class NotFound(RequestError):
    """A model, adapter or session that is not here."""

    kind = "not_found"


class Conflict(RequestError):
    """A model or adapter that is here already."""

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
    """No room for another request now."""

    kind = "overloaded"


class NotEnoughMemory(ServingError):
    """No room for another model; the platform unloads one and tries again."""

    kind = "not_enough_memory"


class Unavailable(ServingError):
    """Loading, draining, or the engine is gone."""

    kind = "unavailable"


class GenerationFailed(ServingError):
    """The engine could not finish this request."""

    kind = "generation_failed"


class HandlerFailed(ServingError):
    """The user's code raised or died; the traceback is in the log."""

    kind = "handler"


class DeadlineExceeded(ServingError):
    """A time limit of this server's settings."""

    kind = "deadline"


class InternalError(ServingError):
    """A fault of this server; the cause is in its log."""

    kind = "internal"


def leaves(root: type[ServingError] = ServingError) -> list[type[ServingError]]:
    """Every error class that is raised: those without subclasses."""
    children = root.__subclasses__()
    return [leaf for child in children for leaf in leaves(child)] if children else [root]


def from_kind(
    kind: str, message: str, *, field: str | None = None, retry_after_s: int | None = None
) -> ServingError:
    """Make the error again on the other side of a process border."""
    for leaf in leaves():
        if leaf.kind == kind and leaf is not ConfigError:
            return leaf(message, field=field, retry_after_s=retry_after_s)
    return GenerationFailed(message)


def one_line(error: BaseException) -> str:
    """Return an exception as one line: its class, since many messages say little, and its text."""
    text = " ".join(str(error).split())[:400]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
