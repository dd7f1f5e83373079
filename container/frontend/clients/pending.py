"""The client of a process that answers each request separately: embedder or handler server."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

from container.errors import ServingError
from container.frontend.clients.backend_client import AnyStatus, BackendClient, Inbox

S = TypeVar("S", bound=AnyStatus)
T = TypeVar("T")


class PendingAnswer(Generic[T]):
    """The answer to one request, message by message; only its client creates it."""

    def __init__(self, request_id: int, forget: Callable[[int], None]) -> None:
        self.request_id = request_id
        self.inbox: Inbox[T] = Inbox()
        self._forget = forget

    def wait(self, timeout_s: float) -> T | None:
        """Wait for a message; None at the timeout. Raises the error that ended the request."""
        return self.inbox.get(timeout_s)

    def close(self) -> None:
        """Abort the request unless its answer is complete."""
        self._forget(self.request_id)


class PendingClient(BackendClient[S], Generic[S, T]):
    """Owns the pending requests of this frontend to one process."""

    def __init__(
        self, address: str, name: str, decoder: "msgspec.msgpack.Decoder[Any]", status_type: type[S]
    ) -> None:
        super().__init__(address, name, decoder, status_type)
        self._pending: dict[int, PendingAnswer[T]] = {}

    @abstractmethod
    def _abort_message(self, request_id: int) -> msgspec.Struct:
        """Return the message that aborts a request."""

    def _request(self, message_of: Callable[[int], msgspec.Struct]) -> PendingAnswer[T]:
        """Send a request under its next id. Raises Unavailable or Overloaded."""
        self._check_ready()
        pending: PendingAnswer[T] = PendingAnswer(next(self._ids), self.forget)
        self._pending[pending.request_id] = pending
        try:
            self._submit(message_of(pending.request_id))
        except BaseException:
            del self._pending[pending.request_id]
            raise
        return pending

    def forget(self, request_id: int) -> None:
        """Drop a request, and abort it in the process unless its answer is complete."""
        if self._pending.pop(request_id, None) is not None:
            self._notify(self._abort_message(request_id))

    def _fail(self, request_id: int, error: ServingError) -> None:
        pending = self._pending.pop(request_id, None)
        if pending is not None:
            pending.inbox.put(error)

    def _open_requests(self) -> list[int]:
        return list(self._pending)
