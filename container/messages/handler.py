"""Messages between frontends, the handler server and its workers, as msgspec structs.

The answer to an invocation is one AnswerHead and any number of AnswerParts, the last marked; or, at
any point, RequestFailed. Bodies are bytes, passed on unread. Of a stream the frontend acknowledges
what its client has read, so that an answer is not made much faster than it is read.
"""

import msgspec

from container.messages.common import EngineState, Hello, RequestFailed

# Bytes of a message besides its data.
PART_OVERHEAD = 256


class Invoke(msgspec.Struct, tag="invoke", frozen=True):
    """Run the user's functions on this body. Header names are in lower case."""

    request_id: int
    body: bytes
    content_type: str
    accept: str
    headers: dict[str, str] = {}


class Cancel(msgspec.Struct, tag="cancel", frozen=True):
    """The client of this invocation has left."""

    request_id: int


class Acknowledge(msgspec.Struct, tag="acknowledge", frozen=True):
    """The client has read so many more bytes of the answer, counted as AnswerPart's `size`."""

    request_id: int
    size: int


class AnswerHead(msgspec.Struct, tag="head", frozen=True):
    """The status and headers of an answer."""

    request_id: int
    status: int
    content_type: str
    is_stream: bool
    headers: dict[str, str] = {}


class AnswerPart(msgspec.Struct, tag="part", frozen=True):
    """The next bytes of an answer."""

    request_id: int
    data: bytes
    is_last: bool

    @property
    def size(self) -> int:
        """The bytes that the part takes while it waits, its message included."""
        return len(self.data) + PART_OVERHEAD


class HandlerStatus(msgspec.Struct, tag="handler_status", frozen=True):
    """Handler server to every frontend, several times a second: state and load."""

    state: EngineState
    detail: str
    running: int = 0
    waiting: int = 0


class WorkerReady(msgspec.Struct, tag="worker_ready", frozen=True):
    """Worker to handler server: the model is loaded; `capacity` invocations may run at a time."""

    capacity: int


class WorkerFailed(msgspec.Struct, tag="worker_failed", frozen=True):
    """Worker to handler server: the reason why the user's code does not load."""

    message: str


ToHandler = Hello | Invoke | Cancel | Acknowledge
FromHandler = HandlerStatus | AnswerHead | AnswerPart | RequestFailed
ToWorker = Invoke | Cancel | Acknowledge
FromWorker = WorkerReady | WorkerFailed | AnswerHead | AnswerPart | RequestFailed

to_handler_decoder = msgspec.msgpack.Decoder(ToHandler)
from_handler_decoder = msgspec.msgpack.Decoder(FromHandler)
to_worker_decoder = msgspec.msgpack.Decoder(ToWorker)
from_worker_decoder = msgspec.msgpack.Decoder(FromWorker)
