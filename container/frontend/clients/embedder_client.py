"""The socket to the embedder: hands each answer to the request that waits for it."""

from typing import Protocol

import msgspec

from container.frontend.clients.pending import PendingAnswer, PendingClient
from container.messages.common import Abort
from container.messages.embedder import (
    Embed,
    Embedded,
    EmbedderStatus,
    from_embedder_decoder,
)


class PendingRows(Protocol):
    """The rows of a request that the embedder may still compute."""

    def wait(self, timeout_s: float) -> Embedded | None:
        """Wait for the rows; None at the timeout. Raises the error that ended the request."""
        ...

    def close(self) -> None:
        """Abort the request unless it has been answered."""
        ...


class EmbedderConnection(Protocol):
    """The embedder as the service uses it; tests implement it with scripted rows."""

    @property
    def status(self) -> EmbedderStatus:
        """The last status of the embedder. Raises Unavailable when it is not connected."""
        ...

    def submit(self, embed: Embed) -> PendingRows:
        """Send a request under a new id; `wait` raises the embedder's refusal."""
        ...


class EmbedderClient(PendingClient[EmbedderStatus, Embedded]):
    """Implements EmbedderConnection over the socket."""

    def __init__(self, address: str) -> None:
        super().__init__(address, "embedder", from_embedder_decoder, EmbedderStatus)

    def submit(self, embed: Embed) -> PendingAnswer[Embedded]:
        """Send a request under a new id; `wait` raises the embedder's refusal."""
        return self._request(
            lambda request_id: msgspec.structs.replace(embed, request_id=request_id)
        )

    def _abort_message(self, request_id: int) -> Abort:
        return Abort(request_id)

    def _deliver(self, message: msgspec.Struct) -> None:
        assert isinstance(message, Embedded)
        pending = self._pending.pop(message.request_id, None)
        if pending is not None:
            pending.inbox.put(message)
