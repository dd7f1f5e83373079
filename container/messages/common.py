"""Messages that every process behind the frontends shares."""

from typing import Literal

import msgspec

from container import errors

# Recovering: a step failed, and the self-test is running.
EngineState = Literal["loading", "ready", "recovering", "draining"]
encode = msgspec.msgpack.Encoder().encode


class ErrorData(msgspec.Struct, frozen=True):
    """An error as data; see container.errors."""

    kind: str
    message: str
    field: str | None = None
    retry_after_s: int | None = None

    @classmethod
    def from_error(cls, error: errors.ServingError) -> "ErrorData":
        """Copy the fields of an error that a client may see."""
        return cls(error.kind, error.message, error.field, error.retry_after_s)

    def to_error(self) -> errors.ServingError:
        """Return the exception again."""
        return errors.from_kind(
            self.kind, self.message, field=self.field, retry_after_s=self.retry_after_s
        )


class Hello(msgspec.Struct, tag="hello", frozen=True):
    """Frontend to backend: register, so that the status is sent here."""


class Abort(msgspec.Struct, tag="abort", frozen=True):
    """Frontend to backend: the client of this request, or of one sequence of it, has left."""

    request_id: int
    seq_index: int | None = None


class RequestFailed(msgspec.Struct, tag="failed", frozen=True):
    """Backend to one frontend: the request ends with this error."""

    request_id: int
    error: ErrorData
