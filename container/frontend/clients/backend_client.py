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
    """What is common to every process's status."""

    @property
    def state(self) -> EngineState:
        """Loading, ready or draining."""
        ...

    @property
    def detail(self) -> str:
        """What it is doing, in words."""
        ...


S = TypeVar("S", bound=AnyStatus)
T = TypeVar("T")


class Inbox(Generic[T]):
    """What has come for a request and was not read yet: messages, or the error that ended it."""

    def __init__(self) -> None:
        self._items: gevent.queue.SimpleQueue[T | ServingError] = gevent.queue.SimpleQueue()

    def put(self, item: T | ServingError) -> None:
        """Add what has come."""
        self._items.put(item)

    def get(self, timeout_s: float) -> T | None:
        """Wait for the next message; None when the time is up. Raises what ended the request."""
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
        self._gone = f"the {name} has not started yet"
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
        """The process's last word on itself. Raises Unavailable when it is gone.

        The supervisor watches for processes that hang, and kills them.
        """
        if self._status is None:
            raise Unavailable(self._gone, retry_after_s=5)
        return self._status

    def _note_status(self, status: S) -> None:
        """Take in the process's new word on itself."""
        del status  # nothing, unless a subclass has a use for it

    @abstractmethod
    def _deliver(self, message: msgspec.Struct) -> None:
        """Hand a message that is neither status nor failure to the request that it is for."""

    @abstractmethod
    def _fail(self, request_id: int, error: ServingError) -> None:
        """End one request; it may be unknown."""

    @abstractmethod
    def _open_requests(self) -> list[int]:
        """The requests that still wait for something."""

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

    def _send_abort(self, message: msgspec.Struct) -> None:
        """Tell the other side, if it is there, that nobody waits for a request any more."""
        if self._status is None:
            return
        try:
            self._send(message)
        except zmq.Again:
            log.warning("an abort could not be sent to the %s", self._name)

    def _send(self, message: msgspec.Struct) -> None:
        self._socket.send(encode(message), zmq.NOBLOCK)

    def _read(self) -> None:
        while True:
            self._take(self._socket.recv())

    def _take(self, frame: bytes) -> None:
        message = self._decoder.decode(frame)
        if isinstance(message, self._status_type):
            self._status = message
            self._note_status(message)
            self._is_known.set()
        elif isinstance(message, RequestFailed):
            self._fail(message.request_id, message.error.to_error())
        else:
            self._deliver(message)

    def _take_the_rest(self) -> None:
        """Read what a process sent before it left; the news of its leaving may come earlier."""
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
        self._gone = "the server is shutting down" if was_draining else f"the {self._name} is gone"
        self._status = None
        lost = self._open_requests()
        if lost:
            log.error("%s; %d requests fail", self._gone, len(lost))
        for request_id in lost:
            self._fail(request_id, Unavailable(self._gone, retry_after_s=10))
