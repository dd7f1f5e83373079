"""The loop of a process that works behind the frontends: messages in, steps, messages out.

The main thread owns the ZeroMQ ROUTER socket and the work. The model is loaded in a second thread,
so that frontends hear `loading` from the first moment on. Queues are bounded: a frontend that does
not read (or is gone) loses its requests, never the step its pace.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import zmq

from container.errors import GenerationFailed, ServingError, Unavailable
from container.messages.common import Abort, EngineState, ErrorData, Hello, RequestFailed, encode

log = logging.getLogger(__name__)

STATUS_INTERVAL_S = 0.25
IDLE_POLL_MS = 50
# Messages to one frontend that may wait: minutes of steps for one that still reads.
SEND_QUEUE = 10_000

Progress = Callable[[str], None]
RequestKey = tuple[bytes, int]  # the frontend's name and its number for the request
M = TypeVar("M", contravariant=True)


class Backend(Protocol[M]):
    """What the loop needs of the work; one thread uses it."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        ...

    def take(self, frontend_id: bytes, message: M) -> None:
        """Take in a frontend's message. Raises ServingError to refuse the request in it."""
        ...

    def step(self) -> Iterable[tuple[bytes, msgspec.Struct]]:
        """Work for a short while; return messages with the frontends that they are for."""
        ...

    def abort_all(self, frontend_id: bytes | None = None) -> list[RequestKey]:
        """Forget all requests, or all of one frontend; return them."""
        ...


W = TypeVar("W", bound=Backend[Any])
StatusOf = Callable[[EngineState, str, W | None], msgspec.Struct]


class BackendServer(Generic[W]):
    """Serves one worker to any number of frontends until it is drained.

    `load` makes the worker, `status_of` what frontends hear of it (None while it loads).
    `run_self_test` runs the smallest piece of work after a failed step; without it a failure ends
    the process.
    """

    def __init__(
        self,
        address: str,
        decoder: "msgspec.msgpack.Decoder[Any]",
        load: Callable[[Progress], W],
        status_of: StatusOf[W],
        *,
        drain_s: float,
        parent_pid: int,
        run_self_test: Callable[[W], None] | None = None,
    ) -> None:
        self._prove = run_self_test
        self._decoder = decoder
        self._load = load
        self._status_of = status_of
        self._drain_s = drain_s
        self._state: EngineState = "loading"
        self._detail = "starting"
        self._worker: W | None = None
        self._load_error: BaseException | None = None
        self._frontends: set[bytes] = set()
        self._drain_until: float | None = None
        self._next_status = 0.0
        self._parent_pid = parent_pid
        self._socket = _bind(address)

    def drain(self) -> None:
        """Refuse new requests, finish the running ones, then let `run` return. Signal-safe."""
        if self._drain_until is None:
            self._drain_until = time.monotonic() + self._drain_s
            self._state, self._detail = "draining", "the server is shutting down"
            self._next_status = 0.0

    def run(self) -> None:
        """Load, serve, drain. Raises what the loading or a step raised."""
        threading.Thread(target=self._load_worker, name="load", daemon=True).start()
        try:
            while not self._is_done():
                has_work = self._worker is not None and self._worker.has_work
                self._receive(0 if has_work else IDLE_POLL_MS)
                if has_work:
                    self._step()
                self._send_status()
        finally:
            self._socket.close(linger=2000)

    def _load_worker(self) -> None:
        try:
            self._worker = self._load(self._set_detail)
        except BaseException as error:  # handed to the main thread, which raises it
            self._load_error = error
            return
        if self._state == "loading":
            self._state, self._detail = "ready", "ready"
        self._next_status = 0.0

    def _set_detail(self, detail: str) -> None:
        if self._state == "loading":
            self._detail = detail
            log.info("%s", detail)

    def _is_done(self) -> bool:
        if self._load_error is not None:
            raise self._load_error
        if os.getppid() != self._parent_pid:
            log.error("the supervisor is gone; leaving")
            return True
        if self._drain_until is None:
            return False
        if self._worker is None or not self._worker.has_work:
            return True
        if time.monotonic() > self._drain_until:
            self._fail_all(Unavailable("the server shut down before the request was finished"))
            return True
        return False

    def _receive(self, timeout_ms: int) -> None:
        if not self._socket.poll(timeout_ms):
            return
        while True:
            try:
                frontend_id, frame = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._handle(frontend_id, frame)

    def _handle(self, frontend_id: bytes, frame: bytes) -> None:
        try:
            message = self._decoder.decode(frame)
        except msgspec.DecodeError:
            log.exception("a message that is not ours was dropped")
            return
        if isinstance(message, Hello):
            self._frontends.add(frontend_id)
            self._send(frontend_id, self._status())
            return
        may_take = self._state == "ready" or isinstance(message, Abort)
        try:
            if self._worker is None or not may_take:
                raise Unavailable(self._detail, retry_after_s=5)
            self._worker.take(frontend_id, message)
        except ServingError as error:
            self._send(frontend_id, RequestFailed(message.request_id, ErrorData.from_error(error)))

    def _step(self) -> None:
        assert self._worker is not None
        messages: Iterable[tuple[bytes, msgspec.Struct]] | None
        try:
            messages = self._worker.step()
        except Exception:
            if self._prove is None:
                self._fail_all(Unavailable("the server's model process failed and is restarted"))
                raise
            log.exception("a step failed")
            messages = None
        if messages is None:  # out here nothing holds what the failed step had
            assert self._prove is not None
            self._recover(self._worker, self._prove)
            return
        for frontend_id, message in messages:
            self._send(frontend_id, message)

    def _recover(self, worker: W, run_self_test: Callable[[W], None]) -> None:
        """After a failed step: fail its requests, then prove that the next step would work.

        Raises what the proof raises; a new process is the only help then.
        """
        self._fail_all(GenerationFailed("the model failed; the cause is in the server's log"))
        if self._state == "ready":
            self._state, self._detail = "recovering", "the model failed and is tried again"
        self._next_status = 0.0
        self._send_status()
        run_self_test(worker)
        log.info("the model works again")
        if self._state == "recovering":
            self._state, self._detail = "ready", "ready"
        self._next_status = 0.0

    def _fail_all(self, error: ServingError) -> None:
        assert self._worker is not None
        for frontend_id, request_id in self._worker.abort_all():
            self._send(frontend_id, RequestFailed(request_id, ErrorData.from_error(error)))

    def _status(self) -> msgspec.Struct:
        return self._status_of(self._state, self._detail, self._worker)

    def _send_status(self) -> None:
        if time.monotonic() < self._next_status:
            return
        self._next_status = time.monotonic() + STATUS_INTERVAL_S
        status = self._status()
        for frontend_id in tuple(self._frontends):
            self._send(frontend_id, status)

    def _send(self, frontend_id: bytes, message: msgspec.Struct) -> None:
        try:
            self._socket.send_multipart([frontend_id, encode(message)], zmq.NOBLOCK)
        except (zmq.Again, zmq.ZMQError) as error:
            self._drop_frontend(frontend_id, error)

    def _drop_frontend(self, frontend_id: bytes, error: Exception) -> None:
        self._frontends.discard(frontend_id)
        aborted = self._worker.abort_all(frontend_id) if self._worker is not None else []
        log.warning("a frontend is gone (%s); %d of its requests aborted", error, len(aborted))


def _bind(address: str) -> zmq.SyncSocket:
    socket: zmq.SyncSocket = zmq.Context.instance().socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an unknown peer is an error, not a lost message
    socket.setsockopt(zmq.SNDHWM, SEND_QUEUE)
    socket.setsockopt(zmq.RCVHWM, SEND_QUEUE)
    socket.bind(address)
    return socket
