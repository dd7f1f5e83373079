"""The frontend's end of the socket to the engine: one client for each worker process.

The only module that starts greenlets. One reads the socket and hands each event to the stream
that waits for it; a second one watches the connection, so that the death of the engine is noticed
at once. After it every open stream gets `Unavailable`, and the socket connects again by itself.
"""

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Iterator
from typing import Protocol

import gevent
import gevent.queue
import zmq.green as zmq
from zmq.utils.monitor import recv_monitor_message

from container.errors import Overloaded, ServingError, Unavailable
from container.messages import (
    Abort,
    Hello,
    RequestFailed,
    SamplingParams,
    Status,
    StepEvents,
    Submit,
    ToEngine,
    TokenEvent,
    encode,
    to_frontend_decoder,
)

log = logging.getLogger(__name__)

# A status comes four times a second between steps. One step may take long (a big model on a CPU),
# but an engine silent for this long hangs.
STALLED_AFTER_S = 120.0
SEND_QUEUE = 10_000


class TokenStream(Protocol):
    """The tokens of one request, as they come."""

    def next_event(self, timeout_s: float) -> TokenEvent | None:
        """Wait for the next token; None when the time is up. Raises what ended the request."""
        ...

    def close(self, seq_index: int | None = None) -> None:
        """Say that nobody reads on, or not this sequence; the engine forgets it."""
        ...


class EngineConnection(Protocol):
    """What the service needs of the engine; tests play one from a list."""

    @property
    def status(self) -> Status:
        """The engine's last word on itself. Raises Unavailable when it is not connected."""
        ...

    def submit(
        self, prompt_ids: list[int], params: SamplingParams, num_sequences: int = 1
    ) -> TokenStream:
        """Send a request; what the engine refuses is raised by the stream."""
        ...


class ZmqTokenStream:
    """Implements TokenStream; made by the client's `submit` only."""

    def __init__(self, client: "EngineClient", request_id: int, num_sequences: int) -> None:
        self._client = client
        self.request_id = request_id
        self.unfinished = set(range(num_sequences))
        self.inbox: gevent.queue.SimpleQueue[TokenEvent | ServingError] = gevent.queue.SimpleQueue()

    def next_event(self, timeout_s: float) -> TokenEvent | None:
        """Wait for the next token; None when the time is up. Raises what ended the request."""
        try:
            item = self.inbox.get(timeout=timeout_s)
        except gevent.queue.Empty:
            return None
        if isinstance(item, ServingError):
            raise item
        event: TokenEvent = item
        return event

    def close(self, seq_index: int | None = None) -> None:
        """Abort what has not ended."""
        self._client.forget(self, seq_index)


class EngineClient:
    """Owns the DEALER socket of this process."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._ids = itertools.count(1)
        self._streams: dict[int, ZmqTokenStream] = {}
        self._status: Status | None = None
        self._heard_at = 0.0
        self._gone = "the engine has not started yet"
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )

    def start(self) -> None:
        """Connect and begin to read; returns at once."""
        identity = f"frontend-{os.getpid()}-{os.urandom(4).hex()}"
        self._socket.setsockopt(zmq.IDENTITY, identity.encode())
        self._socket.setsockopt(zmq.SNDHWM, SEND_QUEUE)
        self._socket.setsockopt(zmq.RCVHWM, 0)  # bounded by the engine's side
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.setsockopt(zmq.LINGER, 0)
        gevent.spawn(self._watch)
        gevent.spawn(self._read)
        self._socket.connect(self._address)

    @property
    def status(self) -> Status:
        """The engine's last word on itself. Raises Unavailable when it is gone or hangs."""
        if self._status is None:
            raise Unavailable(self._gone, retry_after_s=5)
        silence_s = time.monotonic() - self._heard_at
        if silence_s > STALLED_AFTER_S:
            raise Unavailable(f"the engine has been silent for {silence_s:.0f} s", retry_after_s=30)
        return self._status

    def submit(
        self, prompt_ids: list[int], params: SamplingParams, num_sequences: int = 1
    ) -> ZmqTokenStream:
        """Send a request; what the engine refuses is raised by the stream."""
        status = self.status
        if status.state != "ready":
            raise Unavailable(status.detail, retry_after_s=5)
        stream = ZmqTokenStream(self, next(self._ids), num_sequences)
        self._streams[stream.request_id] = stream
        try:
            self._send(Submit(stream.request_id, prompt_ids, params, num_sequences))
        except BaseException as error:
            del self._streams[stream.request_id]
            if isinstance(error, zmq.Again):
                raise Overloaded("the engine does not keep up", retry_after_s=1) from None
            raise
        return stream

    def forget(self, stream: ZmqTokenStream, seq_index: int | None) -> None:
        """Drop a stream or one sequence of it; the engine hears of what it still works on."""
        dropped = stream.unfinished if seq_index is None else stream.unfinished & {seq_index}
        is_known = stream.request_id in self._streams
        stream.unfinished = stream.unfinished - dropped
        if not stream.unfinished:
            self._streams.pop(stream.request_id, None)
        if not is_known or not dropped or self._status is None:
            return
        try:
            self._send(Abort(stream.request_id, seq_index))
        except zmq.Again:
            log.warning("the abort of request %d could not be sent", stream.request_id)

    def _send(self, message: ToEngine) -> None:
        self._socket.send(encode(message), zmq.NOBLOCK)

    def _read(self) -> None:
        while True:
            self._take(self._socket.recv())

    def _take(self, frame: bytes) -> None:
        message = to_frontend_decoder.decode(frame)
        self._heard_at = time.monotonic()
        match message:
            case StepEvents(events):
                for event in events:
                    self._deliver(event)
            case Status():
                self._status = message
            case RequestFailed(request_id, error):
                stream = self._streams.pop(request_id, None)
                if stream is not None:
                    stream.inbox.put(error.to_error())

    def _take_the_rest(self) -> None:
        """Read what an engine sent before it left; the news of its leaving may come earlier."""
        with contextlib.suppress(zmq.Again):
            while True:
                self._take(self._socket.recv(zmq.NOBLOCK))

    def _deliver(self, event: TokenEvent) -> None:
        stream = self._streams.get(event.request_id)
        if stream is None or event.seq_index not in stream.unfinished:
            return  # aborted while the token was on its way
        if event.finish_reason is not None:
            stream.unfinished.discard(event.seq_index)
            if not stream.unfinished:
                del self._streams[event.request_id]
        stream.inbox.put(event)

    def _watch(self) -> None:
        for event in self._connection_events():
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._send(Hello())
            else:
                self._take_the_rest()
                self._lose_engine()

    def _connection_events(self) -> Iterator[int]:
        while True:
            yield recv_monitor_message(self._monitor)["event"]

    def _lose_engine(self) -> None:
        was_draining = self._status is not None and self._status.state == "draining"
        self._gone = "the server is shutting down" if was_draining else "the engine is gone"
        self._status = None
        streams, self._streams = self._streams, {}
        if streams:
            log.error("%s; %d requests fail", self._gone, len(streams))
        for stream in streams.values():
            stream.inbox.put(Unavailable(self._gone, retry_after_s=10))
