"""Messages that every process behind the frontends shares."""

from typing import Literal

import msgspec

from container import errors

# Recovering: a step has failed, and one token is run to see whether the next one would too.
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
        """Take what a client may see of an error."""
        return cls(error.kind, error.message, error.field, error.retry_after_s)

    def to_error(self) -> errors.ServingError:
        """Make the exception again."""
        return errors.from_kind(
            self.kind, self.message, field=self.field, retry_after_s=self.retry_after_s
        )


class Hello(msgspec.Struct, tag="hello", frozen=True):
    """Frontend to engine: I am here; send me the status."""


class Abort(msgspec.Struct, tag="abort", frozen=True):
    """Frontend to engine: nobody waits for this request, or one sequence of it, any more."""

    request_id: int
    seq_index: int | None = None


class RequestFailed(msgspec.Struct, tag="failed", frozen=True):
    """Engine to one frontend: this request gets no more tokens."""

    request_id: int
    error: ErrorData
