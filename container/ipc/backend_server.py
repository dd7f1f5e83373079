"""The loop of a process behind the frontends: messages in, work, messages out.

The main thread owns the ZeroMQ sockets and the work. Loading runs in a second thread, so that
frontends receive the state `loading` from the first moment on. Queues are bounded: a frontend that
does not read, or has died, loses its requests; it never slows down the work.
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from container.errors import InternalError, ServingError, Unavailable, one_line
from container.ipc.heartbeat import Heartbeat
from container.ipc.parent_watch import is_orphan
from container.messages.common import EngineState, ErrorData, Hello, RequestFailed, encode

log = logging.getLogger(__name__)

STATUS_INTERVAL_S = 0.25
IDLE_POLL_MS = 50
# A stage of the loading that goes on is logged again after so long.
LOG_STAGE_EVERY_S = 15.0
# Messages to one frontend that may wait: minutes of steps for one that still reads.
SEND_QUEUE = 10_000
# For the last messages to be read; less than the supervisor's BACKENDS_EXIT_S.
LINGER_MS = 1000
# All other exceptions are one message's or one step's, panics of libraries in Rust included, which
# are no Exceptions.
PROCESS_ENDS = (KeyboardInterrupt, SystemExit)
FAILED_MESSAGE = "the server failed to handle this request; the cause is in its log"

Progress = Callable[[str], None]
RequestKey = tuple[bytes, int]  # the frontend's id and its number for the request
Decoder = msgspec.msgpack.Decoder[Any]
HandleFrame = Callable[[bytes, bytes], None]


def flush_sockets() -> None:
    """Close this process's sockets, once their messages are sent or LINGER_MS are over."""
    zmq.Context.instance().destroy(linger=LINGER_MS)


class BackendServer(ABC):
    """Owns the socket to the frontends, the state that they see and the loop; serves until drained.

    A subclass does the work in the hooks below. All hooks but `load` run in the main thread.
    """

    def __init__(
        self,
        address: str,
        decoder: Decoder,
        *,
        drain_s: float,
        parent_pid: int,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self._decoder = decoder
        self._drain_s = drain_s
        self._parent_pid = parent_pid
        self._heartbeat = heartbeat
        self._state: EngineState = "loading"
        self._detail = "starting"
        self._log_stage_at = 0.0
        self._fatal_error: BaseException | None = None
        self._frontends: set[bytes] = set()
        self._drain_until: float | None = None
        self._next_status = 0.0
        self._poller = zmq.Poller()
        self._handle_frame: dict[zmq.SyncSocket, HandleFrame] = {}
        # For frontends an unknown peer is an error, not a lost message.
        self._socket = self.bind(address, self._handle_frontend_frame, is_mandatory=True)

    @abstractmethod
    def load(self, progress: Progress) -> None:
        """Load the model or the user's code; runs in its own thread."""

    @property
    @abstractmethod
    def has_requests(self) -> bool:
        """Whether requests are unfinished; a drain waits for them."""

    @abstractmethod
    def handle(self, frontend_id: bytes, message: Any) -> None:
        """Process a frontend's message. Raises ServingError to refuse the request in it."""

    @abstractmethod
    def work(self) -> None:
        """Work for a short while; called in every round of the loop."""

    @abstractmethod
    def fail_all(self, error: ServingError) -> None:
        """End every request with this error."""

    @abstractmethod
    def abort_frontend(self, frontend_id: bytes) -> int:
        """Forget the requests of a frontend that has left; return how many there were."""

    @abstractmethod
    def status(self) -> msgspec.Struct:
        """Return the status for frontends."""

    @property
    def poll_ms(self) -> int:
        """How long a round of the loop waits for messages."""
        return IDLE_POLL_MS

    @property
    def state(self) -> EngineState:
        """The state that frontends see."""
        return self._state if self._drain_until is None else "draining"

    @property
    def detail(self) -> str:
        """The state in words."""
        return self._detail if self._drain_until is None else "the server is shutting down"

    def drain(self) -> None:
        """Refuse new requests, finish the running ones, then let `run` return. Signal-safe."""
        if self._drain_until is None:
            self._drain_until = time.monotonic() + self._drain_s
            self._next_status = 0.0

    def run(self) -> None:
        """Load, serve, drain. Raises the exception of the loading or of the work."""
        if self._heartbeat is not None:
            self._heartbeat.start()
        threading.Thread(target=self._run_load, name="load", daemon=True).start()
        try:
            while not self._is_done():
                if self._heartbeat is not None:
                    self._heartbeat.mark(is_ready=self._state == "ready")
                self._receive(self.poll_ms)
                self.work()
                self.send_status()
        finally:
            for socket in self._handle_frame:
                socket.close(linger=LINGER_MS if socket is self._socket else 0)

    def bind(
        self, address: str, handle_frame: HandleFrame, *, is_mandatory: bool
    ) -> zmq.SyncSocket:
        """Open a socket that the loop reads; it belongs to the server."""
        socket: zmq.SyncSocket = zmq.Context.instance().socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_MANDATORY, int(is_mandatory))
        socket.setsockopt(zmq.SNDHWM, SEND_QUEUE)
        socket.setsockopt(zmq.RCVHWM, SEND_QUEUE)
        socket.bind(address)
        self._poller.register(socket, zmq.POLLIN)
        self._handle_frame[socket] = handle_frame
        return socket

    def set_state(self, state: EngineState, detail: str) -> None:
        """Change the state and have the next round send it; a drain hides it."""
        self._state, self._detail = state, detail
        self._next_status = 0.0

    def end_with(self, error: BaseException) -> None:
        """Have `run` raise this error in the next round."""
        self._fatal_error = error

    def require_ready(self) -> None:
        """Refuse a request while the server loads, recovers or drains. Raises Unavailable."""
        if self.state != "ready":
            raise Unavailable(self.detail, retry_after_s=5)

    def send(self, frontend_id: bytes, message: msgspec.Struct) -> None:
        """Send to a frontend; one that does not read or has died is dropped."""
        try:
            self._socket.send_multipart([frontend_id, encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            self._drop_frontend(frontend_id, error)

    def send_error(self, frontend_id: bytes, request_id: int, error: ServingError) -> None:
        """Answer a request with an error."""
        self.send(frontend_id, RequestFailed(request_id, ErrorData.from_error(error)))

    def send_status(self, *, now: bool = False) -> None:
        """Send the status to all frontends, if it is time, or `now`."""
        if time.monotonic() < self._next_status and not now:
            return
        self._next_status = time.monotonic() + STATUS_INTERVAL_S
        status = self.status()
        for frontend_id in tuple(self._frontends):
            self.send(frontend_id, status)

    def _run_load(self) -> None:
        try:
            self.load(self._set_progress)
        except BaseException as error:  # the main thread raises it
            self.end_with(error)

    def _set_progress(self, detail: str) -> None:
        """Show a stage, such as `loading weights: 40 %`; log a new one, and long ones again."""
        if self.state != "loading":
            return
        stage = detail.partition(": ")[0]
        is_new = stage != self._detail.partition(": ")[0]
        self._detail = detail
        if is_new or time.monotonic() > self._log_stage_at:
            self._log_stage_at = time.monotonic() + LOG_STAGE_EVERY_S
            log.info("%s", detail)

    def _is_done(self) -> bool:
        if self._fatal_error is not None:
            raise self._fatal_error
        if is_orphan(self._parent_pid):
            log.error("backend: the supervisor died; this process exits")
            return True
        if self._drain_until is None:
            return False
        if self.has_requests and time.monotonic() > self._drain_until:
            self.fail_all(Unavailable("the server shut down before the request was finished"))
            return True
        return not self.has_requests

    def _receive(self, timeout_ms: int) -> None:
        for socket, _ in self._poller.poll(timeout_ms):
            self._receive_all(socket, self._handle_frame[socket])

    def _receive_all(self, socket: zmq.SyncSocket, handle_frame: HandleFrame) -> None:
        while True:
            try:
                sender_id, frame = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                handle_frame(sender_id, frame)
            except PROCESS_ENDS:
                raise
            except BaseException as error:  # of one message, which must not end all others
                log.exception("backend: handling a message failed: %s; dropped", one_line(error))

    def _handle_frontend_frame(self, frontend_id: bytes, frame: bytes) -> None:
        try:
            message = self._decoder.decode(frame)
        except msgspec.DecodeError as error:
            request_id = _request_id(frame)
            log.error("backend: a message does not decode: %s; its request fails", one_line(error))
            self.send_error(frontend_id, request_id, InternalError(FAILED_MESSAGE))
            return
        if isinstance(message, Hello):
            self._frontends.add(frontend_id)
            self.send(frontend_id, self.status())
            return
        try:
            self.handle(frontend_id, message)
        except ServingError as error:
            self.send_error(frontend_id, message.request_id, error)
        except PROCESS_ENDS:
            raise
        except BaseException as error:  # of one message, which must not end all others
            log.exception(
                "backend: handling %s failed: %s; its request fails",
                type(message).__name__, one_line(error),
            )  # fmt: skip
            self.send_error(frontend_id, message.request_id, InternalError(FAILED_MESSAGE))

    def _drop_frontend(self, frontend_id: bytes, error: Exception) -> None:
        self._frontends.discard(frontend_id)
        num_aborted = self.abort_frontend(frontend_id)
        log.warning("backend: dropped a frontend: %s; %d of its requests abort", error, num_aborted)


class _Numbered(msgspec.Struct):
    """The part that all messages about a request share."""

    request_id: int


def _request_id(frame: bytes) -> int:
    """Read the request's number from a frame that is not valid. Raises DecodeError without one."""
    return msgspec.msgpack.decode(frame, type=_Numbered).request_id
