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
class Ticket:
    """An invocation that has not ended: whose it is, and the message for the worker."""

    owner: bytes
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
        self._tickets: dict[int, Ticket] = {}
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
            for request_id in list(self._tickets):
                self._fail(request_id, error)
        return not self._tickets

    def _receive(self, socket: zmq.SyncSocket, take: Callable[[bytes, bytes], None]) -> None:
        while True:
            try:
                owner, frame = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                take(owner, frame)
            except msgspec.DecodeError:
                log.exception("a message that is not ours was dropped")

    def _from_frontend(self, owner: bytes, frame: bytes) -> None:
        match to_handler_decoder.decode(frame):
            case Hello():
                self._frontends.add(owner)
                self._send(owner, self._status())
            case Invoke() as invoke:
                self._admit(owner, invoke)
            case Cancel(request_id):
                self._cancel(owner, request_id)

    def _admit(self, owner: bytes, invoke: Invoke) -> None:
        try:
            if self._state != "ready":
                raise Unavailable(self._detail, retry_after_s=5)
            if len(self._tickets) >= self._limits.max_requests:
                raise Overloaded(
                    f"the server already has {self._limits.max_requests} requests "
                    "(MAX_CONCURRENT_REQUESTS)",
                    retry_after_s=1,
                )
        except ServingError as error:
            failed = RequestFailed(invoke.request_id, ErrorData.from_error(error))
            self._send(owner, failed)
            return
        ours = next(self._ids)
        renamed = msgspec.structs.replace(invoke, request_id=ours)
        self._tickets[ours] = Ticket(owner, invoke.request_id, renamed)
        self._waiting.append(ours)

    def _cancel(self, owner: bytes, request_id: int) -> None:
        for ours, ticket in list(self._tickets.items()):
            if (ticket.owner, ticket.request_id) != (owner, request_id):
                continue
            if ours in self._waiting:
                self._waiting.remove(ours)
                del self._tickets[ours]
            for worker in self._workers.values():
                if ours in worker.running:  # its place is free when it has answered
                    self._tell(worker, Cancel(ours))

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
            case AnswerHead() as head if head.request_id in self._tickets:
                self._forward(head.request_id, head)
            case AnswerPart() as part if part.request_id in self._tickets:
                self._forward(part.request_id, part)
                if part.is_last:
                    self._end(worker, part.request_id)
            case RequestFailed() as failed if failed.request_id in self._tickets:
                self._forward(failed.request_id, failed)
                self._end(worker, failed.request_id)
            case AnswerHead() | AnswerPart() | RequestFailed():
                pass  # its client was told already

    def _forward(self, ours: int, message: AnswerHead | AnswerPart | RequestFailed) -> None:
        ticket = self._tickets[ours]
        self._send(ticket.owner, msgspec.structs.replace(message, request_id=ticket.request_id))

    def _end(self, worker: WorkerProcess, ours: int) -> None:
        worker.running.pop(ours, None)
        self._tickets.pop(ours, None)

    def _fail(self, ours: int, error: ServingError) -> None:
        self._forward(ours, RequestFailed(ours, ErrorData.from_error(error)))
        del self._tickets[ours]
        if ours in self._waiting:
            self._waiting.remove(ours)

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
                self._bury(worker, code, was_ended=overdue is not None)
        while len(self._workers) < self._limits.num_workers and self._drain_until is None:
            worker = self._start(len(self._workers), self._workers_address)
            self._workers[worker.name] = worker
        if not any(worker.is_ready for worker in self._workers.values()) and self._state == "ready":
            self._state, self._detail = "loading", "the handler is being restarted"
            self._next_status = 0.0

    def _bury(self, worker: WorkerProcess, code: int, *, was_ended: bool) -> None:
        del self._workers[worker.name]
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        told = "was ended with another request" if was_ended else f"died ({cause})"
        for ours in worker.running:
            if ours in self._tickets:
                self._fail(ours, HandlerFailed(f"the handler process {told} during this request"))
        if not worker.is_ready:
            self._failed_starts += 1
            if self._failed_starts > MAX_FAILED_STARTS:
                raise ModelLoadError(f"the handler process {told} while it loaded, several times")
        if not was_ended:
            log.error("a handler process %s; another is started", told)

    def _dispatch(self) -> None:
        while self._waiting:
            free = [one for one in self._workers.values() if one.is_ready and one.num_free > 0]
            if not free:
                return
            worker = max(free, key=lambda one: one.num_free)
            ours = self._waiting.popleft()
            worker.running[ours] = time.monotonic() + self._limits.time_limit_s
            self._tell(worker, self._tickets[ours].invoke)

    def _tell(self, worker: WorkerProcess, message: Invoke | Cancel) -> None:
        self._worker_socket.send_multipart([worker.name.encode(), encode(message)])

    def _status(self) -> HandlerStatus:
        waiting = len(self._waiting)
        return HandlerStatus(self._state, self._detail, len(self._tickets) - waiting, waiting)

    def _send_status(self) -> None:
        if time.monotonic() < self._next_status:
            return
        self._next_status = time.monotonic() + STATUS_INTERVAL_S
        status = self._status()
        for owner in tuple(self._frontends):
            self._send(owner, status)

    def _send(self, owner: bytes, message: FromHandler) -> None:
        try:
            self._frontend_socket.send_multipart([owner, encode(message)], zmq.NOBLOCK)
        except (zmq.Again, zmq.ZMQError) as error:
            self._drop_frontend(owner, error)

    def _drop_frontend(self, owner: bytes, error: Exception) -> None:
        self._frontends.discard(owner)
        log.warning("a frontend is gone (%s)", error)
        for ticket in list(self._tickets.values()):
            if ticket.owner == owner:
                self._cancel(owner, ticket.request_id)


def _bind(address: str, *, mandatory: bool) -> zmq.SyncSocket:
    socket: zmq.SyncSocket = zmq.Context.instance().socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, int(mandatory))
    socket.setsockopt(zmq.SNDHWM, SEND_QUEUE)
    socket.setsockopt(zmq.RCVHWM, SEND_QUEUE)
    socket.bind(address)
    return socket
