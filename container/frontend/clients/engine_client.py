"""The socket to the engine: hands each event to the stream that waits for it."""

from collections.abc import Iterator
from typing import Protocol

import msgspec

from container.errors import DeadlineExceeded, NotFound, ServingError
from container.frontend.clients.backend_client import BackendClient, Inbox
from container.messages.common import Abort
from container.messages.engine import (
    AddAdapter,
    Done,
    RemoveAdapter,
    Status,
    StepEvents,
    Submit,
    TokenEvent,
    to_frontend_decoder,
)

# An adapter may be downloaded first.
COMMAND_S = 600.0


class TokenStream(Protocol):
    """The tokens of one request, in arrival order, or of all requests that share its inbox."""

    @property
    def request_id(self) -> int:
        """The request id of its tokens."""
        ...

    def next_event(self, timeout_s: float) -> TokenEvent | None:
        """Wait for the next token; None at the timeout. Raises the error that ended the request."""
        ...

    def close(self, seq_index: int | None = None) -> None:
        """Abort the request, or one sequence of it, unless it has ended."""
        ...


class EngineConnection(Protocol):
    """The engine as the service uses it; tests implement it with scripted tokens."""

    @property
    def status(self) -> Status:
        """The last status of the engine. Raises Unavailable when it is not connected."""
        ...

    @property
    def num_free(self) -> int:
        """How many more requests the engine takes, by its last status and the requests sent since.

        Records of batch bodies do not count. Raises Unavailable when it is not connected.
        """
        ...

    def submit(self, request: Submit, same_engine_as: TokenStream | None = None) -> TokenStream:
        """Send a request under a new id; the stream raises the engine's refusal.

        With `same_engine_as`, both streams share one inbox: reading one reads both.
        """
        ...

    def add_adapter(self, name: str, source: str, *, preload: bool, pin: bool) -> None:
        """Register a LoRA adapter. Raises the engine's refusal."""
        ...

    def remove_adapter(self, name: str) -> None:
        """Unregister a LoRA adapter. Raises NotFound."""
        ...


class NoEngine:
    """Implements EngineConnection where no language model is served."""

    @property
    def status(self) -> Status:
        """Raise NotFound."""
        raise NotFound(
            "this server has no language model: HF_MODEL_ID names none, or /invocations is "
            "answered by the user's code"
        )

    @property
    def num_free(self) -> int:
        """Return 0."""
        return 0

    def submit(self, request: Submit, same_engine_as: TokenStream | None = None) -> TokenStream:
        """Never called, since `status` raises before."""
        raise AssertionError("submit without an engine")

    def add_adapter(self, name: str, source: str, *, preload: bool, pin: bool) -> None:
        """Raise NotFound."""
        _ = self.status

    def remove_adapter(self, name: str) -> None:
        """Raise NotFound."""
        _ = self.status


class ZmqTokenStream:
    """Implements TokenStream; only the client's `submit` creates it."""

    def __init__(
        self,
        client: "EngineClient",
        request: Submit,
        inbox: Inbox[TokenEvent],
    ) -> None:
        self._client = client
        self.request_id = request.request_id
        self.is_batch = request.is_batch
        self.unfinished = set(range(request.num_sequences))
        self.inbox = inbox

    def next_event(self, timeout_s: float) -> TokenEvent | None:
        """Wait for the next token; None at the timeout. Raises the error that ended the request."""
        return self.inbox.get(timeout_s)

    def close(self, seq_index: int | None = None) -> None:
        """Abort the request, or one sequence of it, unless it has ended."""
        self._client.forget(self, seq_index)


class EngineClient(BackendClient[Status]):
    """Implements EngineConnection over the socket."""

    def __init__(self, address: str, ids: Iterator[int] | None = None) -> None:
        super().__init__(address, "engine", to_frontend_decoder, Status, ids)
        self._streams: dict[int, ZmqTokenStream] = {}
        self._commands: dict[int, Inbox[Done]] = {}
        self._num_of_others = 0  # requests of other frontends, at the last status

    @property
    def num_open(self) -> int:
        """Unfinished requests of this frontend."""
        return len(self._streams)

    @property
    def num_free(self) -> int:
        """How many more requests the engine takes; see EngineConnection."""
        info = self.status.info
        num_taken = self._num_of_others + self._num_interactive
        return 0 if info is None else info.max_requests - num_taken

    @property
    def _num_interactive(self) -> int:
        return sum(not stream.is_batch for stream in self._streams.values())

    def add_adapter(self, name: str, source: str, *, preload: bool, pin: bool) -> None:
        """Register a LoRA adapter. Raises the engine's refusal."""
        self._command(AddAdapter(next(self._ids), name, source, preload, pin))

    def remove_adapter(self, name: str) -> None:
        """Unregister a LoRA adapter. Raises NotFound."""
        self._command(RemoveAdapter(next(self._ids), name))

    def _command(self, message: AddAdapter | RemoveAdapter) -> None:
        """Send a command and wait for its answer."""
        self._check_ready()
        inbox: Inbox[Done] = Inbox()
        self._commands[message.request_id] = inbox
        try:
            self._submit(message)
            if inbox.get(COMMAND_S) is None:
                raise DeadlineExceeded(f"the engine took longer than {COMMAND_S:.0f} s")
        finally:
            del self._commands[message.request_id]

    def submit(self, request: Submit, same_engine_as: TokenStream | None = None) -> ZmqTokenStream:
        """Send a request under its next id; the stream raises the engine's refusal."""
        self._check_ready()
        inbox: Inbox[TokenEvent] = Inbox()
        if isinstance(same_engine_as, ZmqTokenStream):
            inbox = same_engine_as.inbox
        request = msgspec.structs.replace(request, request_id=next(self._ids))
        stream = ZmqTokenStream(self, request, inbox)
        self._streams[stream.request_id] = stream
        try:
            self._submit(request)
        except BaseException:
            del self._streams[stream.request_id]
            raise
        return stream

    def forget(self, stream: ZmqTokenStream, seq_index: int | None) -> None:
        """Drop a stream or one sequence of it, and abort it in the engine unless it has ended."""
        dropped = stream.unfinished if seq_index is None else stream.unfinished & {seq_index}
        is_known = stream.request_id in self._streams
        stream.unfinished = stream.unfinished - dropped
        if not stream.unfinished:
            self._streams.pop(stream.request_id, None)
        if is_known and dropped:
            self._notify(Abort(stream.request_id, seq_index))

    def _on_status(self, status: Status) -> None:
        self._num_of_others = max(0, status.load.requests - self._num_interactive)

    def _deliver(self, message: msgspec.Struct) -> None:
        if isinstance(message, Done):
            if message.request_id in self._commands:
                self._commands[message.request_id].put(message)
            return
        assert isinstance(message, StepEvents)
        for event in message.events:
            self._deliver_event(event)

    def _deliver_event(self, event: TokenEvent) -> None:
        stream = self._streams.get(event.request_id)
        if stream is None or event.seq_index not in stream.unfinished:
            return  # aborted while the token was on its way
        if event.finish_reason is not None:
            stream.unfinished.discard(event.seq_index)
            if not stream.unfinished:
                del self._streams[event.request_id]
        stream.inbox.put(event)

    def _fail(self, request_id: int, error: ServingError) -> None:
        stream = self._streams.pop(request_id, None)
        if stream is not None:
            stream.inbox.put(error)
        elif request_id in self._commands:
            self._commands[request_id].put(error)

    def _open_requests(self) -> list[int]:
        return [*self._streams, *self._commands]
