"""The handler server: takes invocations from the frontends and gives them to workers.

It never runs user code, so it outlives whatever that does: a worker that crashes, hangs or takes
too long is ended and replaced, its invocations are answered with the reason, and the others wait
for the next one. One thread owns all state. Bounded: more than `max_requests` get Overloaded.
"""

import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import zmq

from container.errors import (
    DeadlineExceeded,
    HandlerFailed,
    ModelLoadError,
    Overloaded,
    ServingError,
    Unavailable,
)
from container.handlers.worker_pool import WorkerProcess
from container.messages.common import EngineState, ErrorData, Hello, RequestFailed, encode
from container.messages.handler import (
    AnswerHead,
    AnswerPart,
    Cancel,
    FromHandler,
    HandlerStatus,
    Invoke,
    WorkerFailed,
    WorkerReady,
    from_worker_decoder,
    to_handler_decoder,
)

log = logging.getLogger(__name__)

STATUS_INTERVAL_S = 0.25
POLL_MS = 50
SEND_QUEUE = 10_000
# Starts that may fail in a row before the user's code is given up.
MAX_FAILED_STARTS = 3


@dataclass(frozen=True, slots=True)
class HandlerLimits:
    """How much is taken, and for how long one invocation may run."""

    max_requests: int
    time_limit_s: float
    num_workers: int
    drain_s: float


@dataclass(slots=True)
class PendingInvocation:
    """An invocation that has not ended: whose it is, and the message for the worker."""

    frontend_id: bytes
    request_id: int
    invoke: Invoke


class HandlerServer:
    """Owns the sockets, the line of waiting invocations and the workers."""

    def __init__(
        self,
        address: str,
        workers_address: str,
        limits: HandlerLimits,
        *,
        prepare: Callable[[Callable[[str], None]], None],
        start: Callable[[int, str], WorkerProcess],
        parent_pid: int,
    ) -> None:
        self._limits = limits
        self._prepare = prepare
        self._start = start
        self._parent_pid = parent_pid
        self._workers_address = workers_address
        self._frontend_socket = _bind(address, mandatory=True)
        self._worker_socket = _bind(workers_address, mandatory=False)
        self._frontends: set[bytes] = set()
        self._workers: dict[str, WorkerProcess] = {}
        self._pending: dict[int, PendingInvocation] = {}
        self._waiting: deque[int] = deque()
        self._ids = itertools.count(1)
        self._failed_starts = 0
        self._state: EngineState = "loading"
        self._detail = "starting"
        self._is_prepared = threading.Event()
        self._prepare_error: BaseException | None = None
        self._drain_until: float | None = None
        self._next_status = 0.0

    def drain(self) -> None:
        """Refuse new invocations, finish the others, then let `run` return. Signal-safe."""
        if self._drain_until is None:
            self._drain_until = time.monotonic() + self._limits.drain_s
            self._state, self._detail = "draining", "the server is shutting down"
            self._next_status = 0.0

    def run(self) -> None:
        """Prepare, serve, drain. Raises ModelLoadError when the user's code cannot be used."""
        threading.Thread(target=self._run_prepare, name="prepare", daemon=True).start()
        poller = zmq.Poller()
        poller.register(self._frontend_socket, zmq.POLLIN)
        poller.register(self._worker_socket, zmq.POLLIN)
        try:
            while not self._is_done():
                ready = dict(poller.poll(POLL_MS))
                if self._frontend_socket in ready:
                    self._receive(self._frontend_socket, self._from_frontend)
                if self._worker_socket in ready:
                    self._receive(self._worker_socket, self._from_worker)
                self._watch_workers()
                self._dispatch()
                self._send_status()
        finally:
            for worker in self._workers.values():
                worker.kill()
            self._frontend_socket.close(linger=2000)
            self._worker_socket.close(linger=0)

    def _run_prepare(self) -> None:
        try:
            self._prepare(self._set_detail)
        except BaseException as error:  # handed to the main thread, which raises it
            self._prepare_error = error
        self._is_prepared.set()

    def _set_detail(self, detail: str) -> None:
        if self._state == "loading":
            self._detail = detail
            log.info("%s", detail)

    def _is_done(self) -> bool:
        if self._prepare_error is not None:
            raise self._prepare_error
        if os.getppid() != self._parent_pid:
            log.error("the supervisor is gone; leaving")
            return True
        if self._drain_until is None:
            return False
        if time.monotonic() > self._drain_until:
            error = Unavailable("the server shut down before the request was finished")
            for request_id in list(self._pending):
                self._fail(request_id, error)
        return not self._pending

    def _receive(self, socket: zmq.SyncSocket, take: Callable[[bytes, bytes], None]) -> None:
        while True:
            try:
                frontend_id, frame = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                take(frontend_id, frame)
            except msgspec.DecodeError:
                log.exception("a message that is not ours was dropped")

    def _from_frontend(self, frontend_id: bytes, frame: bytes) -> None:
        match to_handler_decoder.decode(frame):
            case Hello():
                self._frontends.add(frontend_id)
                self._send(frontend_id, self._status())
            case Invoke() as invoke:
                self._admit(frontend_id, invoke)
            case Cancel(request_id):
                self._cancel(frontend_id, request_id)

    def _admit(self, frontend_id: bytes, invoke: Invoke) -> None:
        try:
            if self._state != "ready":
                raise Unavailable(self._detail, retry_after_s=5)
            if len(self._pending) >= self._limits.max_requests:
                raise Overloaded(
                    f"the server already has {self._limits.max_requests} requests "
                    "(MAX_CONCURRENT_REQUESTS)",
                    retry_after_s=1,
                )
        except ServingError as error:
            failed = RequestFailed(invoke.request_id, ErrorData.from_error(error))
            self._send(frontend_id, failed)
            return
        internal_id = next(self._ids)
        renamed = msgspec.structs.replace(invoke, request_id=internal_id)
        self._pending[internal_id] = PendingInvocation(frontend_id, invoke.request_id, renamed)
        self._waiting.append(internal_id)

    def _cancel(self, frontend_id: bytes, request_id: int) -> None:
        for internal_id, pending in list(self._pending.items()):
            if (pending.frontend_id, pending.request_id) != (frontend_id, request_id):
                continue
            if internal_id in self._waiting:
                self._waiting.remove(internal_id)
                del self._pending[internal_id]
            for worker in self._workers.values():
                if internal_id in worker.running:  # its place is free when it has answered
                    self._tell(worker, Cancel(internal_id))

    def _from_worker(self, sender: bytes, frame: bytes) -> None:
        worker = self._workers.get(sender.decode())
        if worker is None:
            return  # ended in the meantime
        match from_worker_decoder.decode(frame):
            case WorkerReady(capacity):
                worker.capacity = capacity
                self._failed_starts = 0
                if self._state == "loading":
                    self._state, self._detail = "ready", "ready"
                    self._next_status = 0.0
            case WorkerFailed(message):
                raise ModelLoadError(message)
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
                pass  # its client was told already

    def _forward(self, internal_id: int, message: AnswerHead | AnswerPart | RequestFailed) -> None:
        pending = self._pending[internal_id]
        self._send(
            pending.frontend_id, msgspec.structs.replace(message, request_id=pending.request_id)
        )

    def _end(self, worker: WorkerProcess, internal_id: int) -> None:
        worker.running.pop(internal_id, None)
        self._pending.pop(internal_id, None)

    def _fail(self, internal_id: int, error: ServingError) -> None:
        self._forward(internal_id, RequestFailed(internal_id, ErrorData.from_error(error)))
        del self._pending[internal_id]
        if internal_id in self._waiting:
            self._waiting.remove(internal_id)

    def _watch_workers(self) -> None:
        """Replace workers that died or hang, and answer their invocations."""
        if not self._is_prepared.is_set():
            return
        for worker in list(self._workers.values()):
            overdue = worker.overdue()
            if overdue is not None:
                log.error("an invocation exceeded %.0f s; its worker is replaced",
                          self._limits.time_limit_s)  # fmt: skip
                limit = f"the handler took longer than {self._limits.time_limit_s:.0f} s"
                self._fail(overdue, DeadlineExceeded(f"{limit} (HANDLER_TIMEOUT)"))
                del worker.running[overdue]
                worker.end()
            code = worker.process.poll()
            if code is not None:
                self._on_worker_exit(worker, code, was_ended=overdue is not None)
        while len(self._workers) < self._limits.num_workers and self._drain_until is None:
            worker = self._start(len(self._workers), self._workers_address)
            self._workers[worker.name] = worker
        if not any(worker.is_ready for worker in self._workers.values()) and self._state == "ready":
            self._state, self._detail = "loading", "the handler is being restarted"
            self._next_status = 0.0

    def _on_worker_exit(self, worker: WorkerProcess, code: int, *, was_ended: bool) -> None:
        del self._workers[worker.name]
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        reason = "was ended with another request" if was_ended else f"died ({cause})"
        for internal_id in worker.running:
            if internal_id in self._pending:
                self._fail(
                    internal_id, HandlerFailed(f"the handler process {reason} during this request")
                )
        if not worker.is_ready:
            self._failed_starts += 1
            if self._failed_starts > MAX_FAILED_STARTS:
                raise ModelLoadError(f"the handler process {reason} while it loaded, several times")
        if not was_ended:
            log.error("a handler process %s; another is started", reason)

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
            self._tell(worker, self._pending[internal_id].invoke)

    def _tell(self, worker: WorkerProcess, message: Invoke | Cancel) -> None:
        self._worker_socket.send_multipart([worker.name.encode(), encode(message)])

    def _status(self) -> HandlerStatus:
        waiting = len(self._waiting)
        return HandlerStatus(self._state, self._detail, len(self._pending) - waiting, waiting)

    def _send_status(self) -> None:
        if time.monotonic() < self._next_status:
            return
        self._next_status = time.monotonic() + STATUS_INTERVAL_S
        status = self._status()
        for frontend_id in tuple(self._frontends):
            self._send(frontend_id, status)

    def _send(self, frontend_id: bytes, message: FromHandler) -> None:
        try:
            self._frontend_socket.send_multipart([frontend_id, encode(message)], zmq.NOBLOCK)
        except (zmq.Again, zmq.ZMQError) as error:
            self._drop_frontend(frontend_id, error)

    def _drop_frontend(self, frontend_id: bytes, error: Exception) -> None:
        self._frontends.discard(frontend_id)
        log.warning("a frontend is gone (%s)", error)
        for pending in list(self._pending.values()):
            if pending.frontend_id == frontend_id:
                self._cancel(frontend_id, pending.request_id)


def _bind(address: str, *, mandatory: bool) -> zmq.SyncSocket:
    socket: zmq.SyncSocket = zmq.Context.instance().socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, int(mandatory))
    socket.setsockopt(zmq.SNDHWM, SEND_QUEUE)
    socket.setsockopt(zmq.RCVHWM, SEND_QUEUE)
    socket.bind(address)
    return socket
