"""The handler server: queues invocations from the frontends and dispatches them to workers.

It never runs user code, so it survives a failure of that code: it replaces a worker that crashes,
hangs or exceeds the time limit, answers its invocations with the reason, and keeps the rest
queued. One thread owns all state. Invocations beyond `max_requests` get Overloaded.
"""

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from container.errors import (
    DeadlineExceeded,
    HandlerFailed,
    ModelLoadError,
    Overloaded,
    ServingError,
)
from container.handlers.worker_pool import WorkerLimits, WorkerProcess, exit_cause
from container.ipc.backend_server import BackendServer, Progress
from container.ipc.heartbeat import Heartbeat
from container.messages.common import RequestFailed, encode
from container.messages.handler import (
    Acknowledge,
    AnswerHead,
    AnswerPart,
    Cancel,
    HandlerStatus,
    Invoke,
    ToWorker,
    WorkerFailed,
    WorkerReady,
    from_worker_decoder,
    to_handler_decoder,
)

log = logging.getLogger(__name__)

# Failed starts in a row after which the container stops.
MAX_FAILED_STARTS = 3


@dataclass(frozen=True, slots=True)
class HandlerLimits:
    """The most invocations at a time, the time limit of each, the workers and their limits."""

    max_requests: int
    time_limit_s: float
    num_workers: int
    drain_s: float
    worker: WorkerLimits


@dataclass(slots=True)
class PendingInvocation:
    """An unfinished invocation: the frontend's key for it, and the message for the worker."""

    frontend_id: bytes
    request_id: int
    invoke: Invoke


class HandlerServer(BackendServer):
    """Owns the workers, their socket and the queue of invocations."""

    def __init__(
        self,
        address: str,
        workers_address: str,
        limits: HandlerLimits,
        *,
        prepare: Callable[[Progress], None],
        start: Callable[[int, str], WorkerProcess],
        parent_pid: int,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        super().__init__(
            address, to_handler_decoder, drain_s=limits.drain_s, parent_pid=parent_pid,
            heartbeat=heartbeat,
        )  # fmt: skip
        self._limits = limits
        self._prepare = prepare
        self._is_prepared = False
        self._start = start
        self._workers_address = workers_address
        self._worker_socket = self.bind(
            workers_address, self._handle_worker_frame, is_mandatory=False
        )
        self._workers: dict[str, WorkerProcess] = {}
        self._pending: dict[int, PendingInvocation] = {}
        self._waiting: deque[int] = deque()
        self._ids = itertools.count(1)
        self._failed_starts = 0

    def load(self, progress: Progress) -> None:
        """Install the requirements of the user's code; workers start afterwards."""
        self._prepare(progress)
        self._is_prepared = True

    @property
    def has_requests(self) -> bool:
        """Whether invocations are unfinished."""
        return bool(self._pending)

    def handle(self, frontend_id: bytes, message: Invoke | Cancel | Acknowledge) -> None:
        """Queue, continue or cancel an invocation. Raises Unavailable or Overloaded."""
        match message:
            case Invoke():
                self._admit(frontend_id, message)
            case Cancel(request_id):
                for internal_id in self._ids_of(frontend_id, request_id):
                    self._cancel(internal_id)
            case Acknowledge(request_id, size):
                for internal_id in self._ids_of(frontend_id, request_id):
                    self._tell_worker(internal_id, Acknowledge(internal_id, size))

    def work(self) -> None:
        """Replace workers that died or hang, then hand waiting invocations to free ones."""
        if self._is_prepared:
            self._watch_workers()
        self._dispatch()

    def fail_all(self, error: ServingError) -> None:
        """End every invocation with this error."""
        for internal_id in list(self._pending):
            self._fail(internal_id, error)

    def abort_frontend(self, frontend_id: bytes) -> int:
        """Cancel the invocations of a frontend that has left; return how many there were."""
        internal_ids = self._ids_of(frontend_id)
        for internal_id in internal_ids:
            self._cancel(internal_id)
        return len(internal_ids)

    def status(self) -> HandlerStatus:
        """Return the status for frontends."""
        waiting = len(self._waiting)
        return HandlerStatus(self.state, self.detail, len(self._pending) - waiting, waiting)

    def run(self) -> None:
        """Serve until drained, then kill the workers. Raises ModelLoadError for bad user code."""
        try:
            super().run()
        finally:
            for worker in self._workers.values():
                worker.process.kill()
            for worker in self._workers.values():
                worker.process.wait()

    def _admit(self, frontend_id: bytes, invoke: Invoke) -> None:
        self.require_ready()
        if len(self._pending) >= self._limits.max_requests:
            raise Overloaded(
                f"the server already has {self._limits.max_requests} requests "
                "(MAX_CONCURRENT_REQUESTS)",
                retry_after_s=1,
            )
        internal_id = next(self._ids)
        renamed = msgspec.structs.replace(invoke, request_id=internal_id)
        self._pending[internal_id] = PendingInvocation(frontend_id, invoke.request_id, renamed)
        self._waiting.append(internal_id)

    def _cancel(self, internal_id: int) -> None:
        if internal_id in self._waiting:
            self._waiting.remove(internal_id)
            del self._pending[internal_id]
        self._tell_worker(internal_id, Cancel(internal_id))  # it runs until the worker answers

    def _ids_of(self, frontend_id: bytes, request_id: int | None = None) -> list[int]:
        """Return a frontend's unfinished invocations: all, or that of this number."""
        return [
            internal_id
            for internal_id, pending in self._pending.items()
            if pending.frontend_id == frontend_id and request_id in (None, pending.request_id)
        ]

    def _tell_worker(self, internal_id: int, message: Cancel | Acknowledge) -> None:
        """Send a message to the worker that runs an invocation, if one does."""
        for worker in self._workers.values():
            if internal_id in worker.running:
                self._send_to_worker(worker, message)

    def _handle_worker_frame(self, sender: bytes, frame: bytes) -> None:
        worker = self._workers.get(sender.decode())
        if worker is None:
            return  # it was replaced in the meantime
        match from_worker_decoder.decode(frame):
            case WorkerReady(capacity):
                worker.capacity = capacity
                self._failed_starts = 0
                if self.state == "loading":
                    self.set_state("ready", "ready")
            case WorkerFailed(message):
                self.end_with(ModelLoadError(message))
            case AnswerHead() as head if head.request_id in self._pending:
                self._forward(head.request_id, head)
            case AnswerPart() as part if part.request_id in self._pending:
                self._forward(part.request_id, part)
                if part.is_last:
                    self._end(worker, part.request_id)
            case RequestFailed() as failed if failed.request_id in self._pending:
                self._forward(failed.request_id, failed)
                self._end(worker, failed.request_id)
            case AnswerHead() | AnswerPart() | RequestFailed():
                pass  # its client has an answer already

    def _forward(self, internal_id: int, message: AnswerHead | AnswerPart | RequestFailed) -> None:
        pending = self._pending[internal_id]
        self.send(
            pending.frontend_id, msgspec.structs.replace(message, request_id=pending.request_id)
        )

    def _end(self, worker: WorkerProcess, internal_id: int) -> None:
        worker.running.pop(internal_id, None)
        self._pending.pop(internal_id, None)

    def _fail(self, internal_id: int, error: ServingError) -> None:
        # Sending may drop the frontend, and so cancel: it must not find this invocation any more.
        pending = self._pending.pop(internal_id, None)
        if pending is None:
            return
        if internal_id in self._waiting:
            self._waiting.remove(internal_id)
        self.send_error(pending.frontend_id, pending.request_id, error)

    def _watch_workers(self) -> None:
        """Replace workers that died, hang or exceed a limit, and fail their invocations."""
        for worker in list(self._workers.values()):
            reason = self._end_overdue(worker) or self._end_over_limit(worker)
            code = worker.process.poll()
            if code is not None:
                self._on_worker_exit(worker, code, reason)
        while len(self._workers) < self._limits.num_workers and self.state != "draining":
            worker = self._start(len(self._workers), self._workers_address)
            self._workers[worker.name] = worker
        if not any(worker.is_ready for worker in self._workers.values()) and self.state == "ready":
            self.set_state("loading", "the handler is being restarted")

    def _end_overdue(self, worker: WorkerProcess) -> str | None:
        """End a worker with an overdue invocation; return the reason that its other ones get."""
        overdue = worker.overdue()
        if overdue is None:
            return None
        limit_s = self._limits.time_limit_s
        log.error(
            "%s: an invocation exceeded HANDLER_TIMEOUT (%.0f s); replacing the worker",
            worker.name, limit_s,
        )  # fmt: skip
        message = f"the handler took longer than {limit_s:.0f} s (HANDLER_TIMEOUT)"
        self._fail(overdue, DeadlineExceeded(message))
        del worker.running[overdue]
        worker.end()
        return "was ended with another request"

    def _end_over_limit(self, worker: WorkerProcess) -> str | None:
        """End a worker that exceeds a limit of its process; return the reason."""
        reason = worker.breach(self._limits.worker)
        if reason is not None:
            log.error(
                "%s: the process %s; replacing it, %d invocations fail",
                worker.name, reason, len(worker.running),
            )  # fmt: skip
            worker.end()
        return reason

    def _on_worker_exit(self, worker: WorkerProcess, code: int, ended_for: str | None) -> None:
        del self._workers[worker.name]
        reason = ended_for or f"died ({exit_cause(code)})"
        for internal_id in worker.running:
            self._fail(
                internal_id, HandlerFailed(f"the handler process {reason} during this request")
            )
        if not worker.is_ready:
            self._failed_starts += 1
            if self._failed_starts > MAX_FAILED_STARTS:
                raise ModelLoadError(f"the handler process {reason} while it loaded, several times")
        if ended_for is None:
            log.error("%s: the process %s; starting another", worker.name, reason)

    def _dispatch(self) -> None:
        while self._waiting:
            free = [
                candidate
                for candidate in self._workers.values()
                if candidate.is_ready and candidate.num_free > 0
            ]
            if not free:
                return
            worker = max(free, key=lambda candidate: candidate.num_free)
            internal_id = self._waiting.popleft()
            worker.running[internal_id] = time.monotonic() + self._limits.time_limit_s
            self._send_to_worker(worker, self._pending[internal_id].invoke)

    def _send_to_worker(self, worker: WorkerProcess, message: ToWorker) -> None:
        self._worker_socket.send_multipart([worker.name.encode(), encode(message)])
