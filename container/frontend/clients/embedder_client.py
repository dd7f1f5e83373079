"""The socket to the embedder: hands each answer to the request that waits for it."""

from typing import Protocol

import msgspec

from container.errors import ServingError
from container.frontend.clients.backend_client import BackendClient, Inbox
from container.messages.common import Abort
from container.messages.embedder import (
    Embed,
    Embedded,
    EmbedderStatus,
    EmbedInput,
    Truncation,
    from_embedder_decoder,
)


class PendingRows(Protocol):
    """An answer of the embedder that may still have to come."""

    def wait(self, timeout_s: float) -> Embedded | None:
        """Wait for it; None when the time is up. Raises what ended the request."""
        ...

    def close(self) -> None:
        """Say that nobody waits any more."""
        ...


class EmbedderConnection(Protocol):
    """What the service needs of the embedder; tests play one from a list."""

    @property
    def status(self) -> EmbedderStatus:
        """Its last word on itself. Raises Unavailable when it is not connected."""
        ...

    def submit(
        self,
        inputs: list[EmbedInput],
        field: str,
        prompt_name: str | None,
        truncation: Truncation,
        *,
        per_token: bool,
    ) -> PendingRows:
        """Send a request; what the embedder refuses is raised while waiting."""
        ...


class ZmqPendingRows:
    """Implements PendingRows; made by the client's `submit` only."""

    def __init__(self, client: "EmbedderClient", request_id: int) -> None:
        self._client = client
        self._request_id = request_id
        self.inbox: Inbox[Embedded] = Inbox()

    def wait(self, timeout_s: float) -> Embedded | None:
        """Wait for it; None when the time is up. Raises what ended the request."""
        return self.inbox.get(timeout_s)

    def close(self) -> None:
        """Abort what has not been answered."""
        self._client.forget(self._request_id)


class EmbedderClient(BackendClient[EmbedderStatus]):
    """Implements EmbedderConnection over the socket."""

    def __init__(self, address: str) -> None:
        super().__init__(address, "embedder", from_embedder_decoder, EmbedderStatus)
        self._pending: dict[int, ZmqPendingRows] = {}

    def submit(
        self,
        inputs: list[EmbedInput],
        field: str,
        prompt_name: str | None,
        truncation: Truncation,
        *,
        per_token: bool,
    ) -> ZmqPendingRows:
        """Send a request; what the embedder refuses is raised while waiting."""
        self._check_ready()
        request_id = next(self._ids)
        pending = ZmqPendingRows(self, request_id)
        self._pending[request_id] = pending
        try:
            self._submit(Embed(request_id, inputs, field, prompt_name, truncation, per_token))
        except BaseException:
            del self._pending[request_id]
            raise
        return pending

    def forget(self, request_id: int) -> None:
        """Drop a request; the embedder hears of it if it has not answered."""
        if self._pending.pop(request_id, None) is not None:
            self._send_abort(Abort(request_id))

    def _deliver(self, message: msgspec.Struct) -> None:
        assert isinstance(message, Embedded)
        pending = self._pending.pop(message.request_id, None)
        if pending is not None:
            pending.inbox.put(message)

    def _fail(self, request_id: int, error: ServingError) -> None:
        pending = self._pending.pop(request_id, None)
        if pending is not None:
            pending.inbox.put(error)

    def _open_requests(self) -> list[int]:
        return list(self._pending)
