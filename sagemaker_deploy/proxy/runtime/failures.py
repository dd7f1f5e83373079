"""Failed invocations by cause: which may be tried again, and the status that a client gets."""

import json
from enum import StrEnum
from typing import Any

import aiohttp

# Of a component or endpoint without a running copy: scale from zero, or a model that is loading.
CAPACITY_WORDS = ("no capacity", "not ready", "is being scaled", "no instances")
THROTTLE_CODES = {"ThrottlingException", "Throttling", "TooManyRequestsException"}
UNAVAILABLE_CODES = {
    "InternalFailure",
    "InternalServerError",
    "ServiceUnavailable",
    "ServiceUnavailableException",
    "InternalDependencyException",
    "InternalStreamFailure",
}
DENIED_STATUS = (401, 403)
TIME_EXCEEDED = "ModelInvocationTimeExceeded"


class Cause(StrEnum):
    """The cause of a failure; the first three are tried again."""

    THROTTLED = "throttled"
    CAPACITY = "capacity"
    UNAVAILABLE = "unavailable"
    TIMED_OUT = "timed_out"
    REFUSED = "refused"


class CallFailed(Exception):
    """An invocation failed. `body` is the container's own error object, if it sent one.

    A container's error may also be plain text: `message`, with `is_from_container`.
    """

    def __init__(
        self,
        cause: Cause,
        status: int,
        message: str,
        body: Any = None,
        *,
        is_from_container: bool = False,
    ) -> None:
        super().__init__(message)
        self.cause = cause
        self.status = status
        self.message = message
        self.body = body
        self.is_from_container = is_from_container


def from_response(status: int, code: str, content: bytes) -> CallFailed:
    """Classify an error response of the runtime API."""
    fields = _object(content)
    code = (code or str(fields.get("__type", ""))).partition(":")[0].rpartition("#")[2]
    message = str(fields.get("Message") or fields.get("message") or content[:500].decode("latin-1"))
    if "OriginalStatusCode" in fields:
        return _from_model(int(fields["OriginalStatusCode"]), str(fields.get("OriginalMessage")))
    if code == "ModelNotReadyException" or any(word in message.lower() for word in CAPACITY_WORDS):
        return CallFailed(Cause.CAPACITY, 503, message)
    if code in THROTTLE_CODES or status == 429:
        return CallFailed(Cause.THROTTLED, 429, message)
    if code in UNAVAILABLE_CODES or status >= 500:
        return CallFailed(Cause.UNAVAILABLE, 503, message)
    if status in DENIED_STATUS:
        words = f"SageMaker refused the credentials of this proxy: {message} ({code})"
        return CallFailed(Cause.REFUSED, 502, words)
    is_missing = "not found" in message.lower()
    return CallFailed(Cause.REFUSED, 404 if is_missing else status, message)


def _from_model(status: int, text: str) -> CallFailed:
    """Classify the error of a container; status 0 is one that did not answer."""
    if status == 0 and "timed out" in text:
        return CallFailed(Cause.TIMED_OUT, 504, text)
    body = _object(text.encode()) or None
    message = _words(body) or text
    if status in (0, 502, 503, 504):
        return CallFailed(Cause.UNAVAILABLE, status or 502, message, body)
    if status == 429:
        return CallFailed(Cause.THROTTLED, 429, message, body)
    return CallFailed(Cause.REFUSED, status, message, body, is_from_container=True)


def from_event(kind: str, payload: bytes) -> CallFailed:
    """Classify an exception event of a response stream."""
    fields = _object(payload)
    message = str(fields.get("Message") or fields.get("message") or kind)
    if fields.get("ErrorCode") == TIME_EXCEEDED:
        return CallFailed(Cause.TIMED_OUT, 504, message)
    return CallFailed(Cause.UNAVAILABLE, 502, message)


def broken(error: Exception) -> CallFailed:
    """Classify a lost or refused connection to SageMaker, or one that has been silent too long."""
    if isinstance(error, aiohttp.SocketTimeoutError):  # the model may still be generating
        return CallFailed(Cause.TIMED_OUT, 504, f"no answer from SageMaker in time: {error}")
    return CallFailed(Cause.UNAVAILABLE, 502, f"no answer from SageMaker: {error or 'closed'}")


def in_stream(event: dict[str, Any]) -> CallFailed:
    """Classify an error event that the container wrote into its stream."""
    message = _words(event) or "the stream ended with an error"
    return CallFailed(Cause.REFUSED, 500, message, event)


def _object(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _words(body: dict[str, Any] | None) -> str:
    error = (body or {}).get("error") or (body or {}).get("message") or ""
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
