"""The frontend's end of the socket to a process behind it: one client for each.

The only module that starts greenlets. One reads the socket; a second one watches the connection, so
that the death of the other process is noticed at once. After it every open request gets
`Unavailable`, and the socket connects again by itself.
"""

import contextlib
import itertools
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

import gevent
import gevent.event
import gevent.queue
import msgspec
import zmq.green as zmq
from zmq.utils.monitor import recv_monitor_message

from container.errors import InvalidParameter, Overloaded, ServingError, Unavailable
from container.messages.common import EngineState, Hello, RequestFailed, encode

log = logging.getLogger(__name__)

SEND_QUEUE = 10_000


class AnyStatus(Protocol):
    """The fields that the status of every process has."""

    @property
    def state(self) -> EngineState:
        """Loading, ready or draining."""
        ...

    @property
    def detail(self) -> str:
        """Describe the state in words."""
        ...


S = TypeVar("S", bound=AnyStatus)
T = TypeVar("T")


class Inbox(Generic[T]):
    """The unread messages of a request, and the error that ended it."""

    def __init__(self) -> None:
        self._items: gevent.queue.SimpleQueue[T | ServingError] = gevent.queue.SimpleQueue()

    def put(self, item: T | ServingError) -> None:
        """Add a message or the final error."""
        self._items.put(item)

    def get(self, timeout_s: float) -> T | None:
        """Wait for a message; None at the timeout. Raises the error that ended the request."""
        try:
            item = self._items.get(timeout=timeout_s)
        except gevent.queue.Empty:
            return None
        if isinstance(item, ServingError):
            raise item
        message: T = item
        return message


class BackendClient(ABC, Generic[S]):
    """Owns the DEALER socket of this frontend to one process, called `name` in messages.

    `ids` are the numbers of its requests, which several clients may share.
    """

    def __init__(
        self,
        address: str,
        name: str,
        decoder: "msgspec.msgpack.Decoder[Any]",
        status_type: type[S],
        ids: Iterator[int] | None = None,
    ) -> None:
        self._address = address
        self._name = name
        self._decoder = decoder
        self._status_type = status_type
        self._ids = ids if ids is not None else itertools.count(1)
        self._status: S | None = None
        self._unavailable_reason = f"the {name} has not started yet"
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED
        )
        self._is_known = gevent.event.Event()

    def start(self) -> None:
        """Connect and begin to read; returns at once."""
        identity = f"frontend-{os.getpid()}-{os.urandom(4).hex()}"
        self._socket.setsockopt(zmq.IDENTITY, identity.encode())
        self._socket.setsockopt(zmq.SNDHWM, SEND_QUEUE)
        self._socket.setsockopt(zmq.RCVHWM, 0)  # bounded by the other side
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.setsockopt(zmq.LINGER, 0)
        gevent.spawn(self._watch)
        gevent.spawn(self._read)
        self._socket.connect(self._address)

    def wait_known(self, timeout_s: float) -> None:
        """Wait until the process has sent its status, or nothing listens at its address."""
        self._is_known.wait(timeout_s)

    @property
    def status(self) -> S:
        """The last status of the process. Raises Unavailable when it has exited.

        A process that hangs is killed by the supervisor.
        """
        if self._status is None:
            raise Unavailable(self._unavailable_reason, retry_after_s=5)
        return self._status

    def _on_status(self, status: S) -> None:
        """Process a new status; does nothing here."""
        del status

    @abstractmethod
    def _deliver(self, message: msgspec.Struct) -> None:
        """Hand a message that is neither status nor failure to the request that it is for."""

    @abstractmethod
    def _fail(self, request_id: int, error: ServingError) -> None:
        """End one request; it may be unknown."""

    @abstractmethod
    def _open_requests(self) -> list[int]:
        """Return the ids of the unfinished requests."""

    def _check_ready(self) -> None:
        status = self.status
        if status.state != "ready":
            raise Unavailable(status.detail, retry_after_s=5)

    def _submit(self, message: msgspec.Struct) -> None:
        """Send a request. Raises Overloaded when the other side does not read.

        Raises InvalidParameter for a number that no message can hold.
        """
        try:
            self._send(message)
        except zmq.Again:
            raise Overloaded(f"the {self._name} does not keep up", retry_after_s=1) from None
        except OverflowError:
            raise InvalidParameter(
                "a number in the request does not fit into 64 bits; token ids are far below that"
            ) from None

    def _notify(self, message: msgspec.Struct) -> None:
        """Send a message about a request, such as its abort, if the process is connected."""
        if self._status is None:
            return
        try:
            self._send(message)
        except zmq.Again:
            log.warning("%s: its queue is full; a message was dropped", self._name)

    def _send(self, message: msgspec.Struct) -> None:
        self._socket.send(encode(message), zmq.NOBLOCK)

    def _read(self) -> None:
        while True:
            self._take(self._socket.recv())

    def _take(self, frame: bytes) -> None:
        message = self._decoder.decode(frame)
        if isinstance(message, self._status_type):
            self._status = message
            self._on_status(message)
            self._is_known.set()
        elif isinstance(message, RequestFailed):
            self._fail(message.request_id, message.error.to_error())
        else:
            self._deliver(message)

    def _take_the_rest(self) -> None:
        """Read the messages that a process sent before it exited, though its exit is known."""
        with contextlib.suppress(zmq.Again):
            while True:
                self._take(self._socket.recv(zmq.NOBLOCK))

    def _watch(self) -> None:
        for event in self._connection_events():
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._send(Hello())
            elif event == zmq.EVENT_CONNECT_RETRIED:
                self._is_known.set()
            else:
                self._take_the_rest()
                self._lose()

    def _connection_events(self) -> Iterator[int]:
        while True:
            yield recv_monitor_message(self._monitor)["event"]

    def _lose(self) -> None:
        was_draining = self._status is not None and self._status.state == "draining"
        self._unavailable_reason = (
            "the server is shutting down" if was_draining else f"the {self._name} is gone"
        )
        self._status = None
        lost = self._open_requests()
        if lost:
            log.error("frontend: %s; %d requests fail", self._unavailable_reason, len(lost))
        for request_id in lost:
            self._fail(request_id, Unavailable(self._unavailable_reason, retry_after_s=10))
