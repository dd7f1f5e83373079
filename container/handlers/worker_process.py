"""A handler worker: the process in which the user's code runs.

The main thread owns the socket; a second thread loads the model, so that a worker always reads.
Each invocation runs in its own thread. WorkerReady tells the handler server the number of threads,
which never sends more invocations than that. Threads put their messages into a queue.
"""

import contextlib
import faulthandler
import logging
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec
import zmq

from container import logs
from container.errors import HandlerFailed, ModelLoadError, ServingError, one_line
from container.handlers.answer_window import AnswerWindow
from container.handlers.context import INFERENCE_ID
from container.handlers.invocation import ClientDisconnected, Handler
from container.handlers.process_bounds import bound_memory
from container.ipc.parent_watch import is_orphan
from container.messages.common import ErrorData, RequestFailed, encode
from container.messages.handler import (
    Acknowledge,
    AnswerPart,
    Cancel,
    FromWorker,
    Invoke,
    WorkerFailed,
    WorkerReady,
    to_worker_decoder,
)

log = logging.getLogger(__name__)

PARENT_CHECK_MS = 1000
# Messages that are sent before the socket is read again.
MAX_SENT = 100


class Worker:
    """Owns the socket to the handler server and the threads that run invocations."""

    def __init__(
        self,
        address: str,
        name: str,
        make_handler: Callable[[], tuple[Handler, int]],
        parent_pid: int,
    ) -> None:
        self._make_handler = make_handler
        self._parent_pid = parent_pid
        self._pid = os.getpid()
        self._handler: Handler | None = None
        self._failure: ModelLoadError | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._windows: dict[int, AnswerWindow] = {}
        self._outbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._bell, self._ring = socket.socketpair()
        self._ring.setblocking(False)
        self._socket: zmq.SyncSocket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, name.encode())
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.connect(address)

    def run(self) -> None:
        """Load and serve until the handler server kills this process. Raises ModelLoadError."""
        # On SIGABRT a hung worker writes the stacks of its threads to the log.
        faulthandler.enable()
        bound_memory()
        signal.signal(
            signal.SIGTERM, signal.SIG_IGN
        )  # the handler server kills this process after the drain
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=self._load, name="load", daemon=True).start()
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._bell, zmq.POLLIN)
        while not is_orphan(self._parent_pid):
            ready = dict(poller.poll(PARENT_CHECK_MS))
            if self._bell.fileno() in ready or self._bell in ready:
                self._bell.recv(4096)
            self._send_all()
            if self._failure is not None:
                self._socket.close(linger=2000)
                raise self._failure
            if self._socket in ready:
                self._receive()

    def _load(self) -> None:
        """Run the user's module and model_fn, in a thread of the pool that will use the model."""
        try:
            handler, capacity = self._make_handler()
            threads = ThreadPoolExecutor(capacity, thread_name_prefix="invocation")
            threads.submit(handler.load).result()
        except ModelLoadError as error:
            self._fail(error)
        except BaseException as error:  # a user's module may raise anything, SystemExit too
            log.exception("handler worker: loading the user's code failed; the container stops")
            self._fail(ModelLoadError(f"the user's code cannot be loaded: {one_line(error)}"))
        else:
            self._handler, self._threads = handler, threads
            self._put(WorkerReady(capacity))

    def _fail(self, error: ModelLoadError) -> None:
        self._put(WorkerFailed(error.message))
        self._failure = error
        self._wake()

    def _put(self, message: FromWorker) -> None:
        if os.getpid() != self._pid:  # user code has forked, and the child came back, too
            os._exit(0)
        # Encoded here, since what user code has put into it may not be encodable.
        self._outbox.put(encode(message))
        self._wake()

    def _wake(self) -> None:
        """Have the main thread look at the outbox; never waits, not even in the main thread."""
        with contextlib.suppress(BlockingIOError):  # it has been rung, and not been heard yet
            self._ring.send(b"x")

    def _send_all(self) -> None:
        for _ in range(MAX_SENT):
            if self._outbox.empty():
                return
            self._socket.send(self._outbox.get())
        self._wake()

    def _receive(self) -> None:
        while True:
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = to_worker_decoder.decode(frame)
            except msgspec.DecodeError:
                log.exception("handler worker: a frame does not decode; dropped")
                continue
            match message:
                case Invoke(request_id):
                    assert self._threads is not None, "an invocation before WorkerReady"
                    self._windows[request_id] = AnswerWindow()
                    self._threads.submit(self._serve, message)
                case Cancel(request_id):
                    if (window := self._windows.get(request_id)) is not None:
                        window.cancel()
                case Acknowledge(request_id, size):
                    if (window := self._windows.get(request_id)) is not None:
                        window.acknowledge(size)

    def _serve(self, invoke: Invoke) -> None:
        window = self._windows[invoke.request_id]
        logs.inference_id.set(invoke.headers.get(INFERENCE_ID))
        assert self._handler is not None
        try:
            for message in self._handler.answer(invoke, window.is_cancelled):
                if isinstance(message, AnswerPart):
                    window.add(message.size)
                self._put(message)
        except ClientDisconnected:
            self._put(_failed(invoke, HandlerFailed("the client has left")))
        except ServingError as error:
            self._put(_failed(invoke, error))
        except (
            BaseException
        ) as error:  # if the thread died silently, the client would wait for ever
            log.exception("handler worker: user code failed; the client gets an error")
            self._put(_failed(invoke, HandlerFailed(f"user code failed: {one_line(error)}")))
        finally:
            del self._windows[invoke.request_id]


def _failed(invoke: Invoke, error: ServingError) -> RequestFailed:
    return RequestFailed(invoke.request_id, ErrorData.from_error(error))
