"""The server of a model that works in steps: the engine's and the embedder's."""

import logging
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from container.errors import ServingError, Unavailable, one_line
from container.ipc.backend_server import (
    IDLE_POLL_MS,
    PROCESS_ENDS,
    BackendServer,
    Decoder,
    Progress,
    RequestKey,
)
from container.ipc.heartbeat import Heartbeat
from container.messages.common import Abort, EngineState

log = logging.getLogger(__name__)

M = TypeVar("M", contravariant=True)


class StepBackend(Protocol[M]):
    """The work of a StepServer; only the main thread calls it."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        ...

    @property
    def has_new_status(self) -> bool:
        """Whether the last step's messages tell of a change that the status must show first."""
        ...

    def take(self, frontend_id: bytes, message: M) -> None:
        """Process a frontend's message. Raises ServingError to refuse the request in it."""
        ...

    def step(self) -> Iterable[tuple[bytes, msgspec.Struct]]:
        """Work for a short while; return messages with the frontends that they are for."""
        ...

    def recover(self) -> None:
        """After a failed step, make the next one possible, without the requests to blame.

        Raises the exception of a self-test: then only a new process can help.
        """
        ...

    def abort_all(self, frontend_id: bytes | None = None) -> list[RequestKey]:
        """Abort all requests, or all of one frontend; return their keys."""
        ...


B = TypeVar("B", bound=StepBackend[Any])
StatusOf = Callable[[EngineState, str, B | None], msgspec.Struct]


class StepServer(BackendServer, Generic[B]):
    """Serves one backend to any number of frontends until it is drained.

    `load_backend` returns the backend, `status_of` the status for frontends (of None while it
    loads).
    """

    def __init__(
        self,
        address: str,
        decoder: Decoder,
        load_backend: Callable[[Progress], B],
        status_of: StatusOf[B],
        *,
        drain_s: float,
        parent_pid: int,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self._load_backend = load_backend
        self._status_of = status_of
        self._backend: B | None = None
        super().__init__(
            address, decoder, drain_s=drain_s, parent_pid=parent_pid, heartbeat=heartbeat
        )

    def load(self, progress: Progress) -> None:
        """Load the backend, then serve."""
        self._backend = self._load_backend(progress)
        self.set_state("ready", "ready")

    @property
    def has_requests(self) -> bool:
        """Whether the backend has work."""
        return self._backend is not None and self._backend.has_work

    @property
    def poll_ms(self) -> int:
        """Zero while there is work, so that steps follow each other without a pause."""
        return 0 if self.has_requests else IDLE_POLL_MS

    def handle(self, frontend_id: bytes, message: Any) -> None:
        """Hand a message to the backend; only aborts unless it is ready. Raises ServingError."""
        if self._backend is None or not isinstance(message, Abort):
            self.require_ready()
        assert self._backend is not None, "ready without a backend"
        self._backend.take(frontend_id, message)

    def work(self) -> None:
        """Run a step, if there is work. Raises the self-test's exception after a failed one."""
        if self._backend is None or not self._backend.has_work:
            return
        try:
            messages = self._backend.step()
        except PROCESS_ENDS:
            raise
        except BaseException as error:
            log.exception("backend: a step failed: %s; its requests run again", one_line(error))
        else:
            if self._backend.has_new_status:
                self.send_status(now=True)
            for frontend_id, message in messages:
                self.send(frontend_id, message)
            return
        # Outside of the handler the exception no longer holds the failed step's memory.
        self._recover(self._backend)

    def _recover(self, backend: B) -> None:
        self.set_state("recovering", "the model failed and is tried again")
        self.send_status()
        try:
            backend.recover()
        except Exception:
            self.fail_all(Unavailable("the server's model process failed and is restarted"))
            raise
        log.info("backend: the self-test passed; serving continues")
        self.set_state("ready", "ready")

    def fail_all(self, error: ServingError) -> None:
        """End every request with this error."""
        assert self._backend is not None
        for frontend_id, request_id in self._backend.abort_all():
            self.send_error(frontend_id, request_id, error)

    def abort_frontend(self, frontend_id: bytes) -> int:
        """Abort the requests of a frontend that has exited; return how many there were."""
        return 0 if self._backend is None else len(self._backend.abort_all(frontend_id))

    def status(self) -> msgspec.Struct:
        """Return the status for frontends."""
        return self._status_of(self.state, self.detail, self._backend)
