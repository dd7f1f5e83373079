"""Bodies have a time to arrive in, and answers one to be read, more of it the larger they are."""

from types import SimpleNamespace

import gevent
import pytest
from gunicorn.http.body import ChunkedReader
from gunicorn.http.unreader import IterUnreader
from gunicorn.workers.ggevent import GeventWorker

from container.frontend import gunicorn_worker
from container.frontend.gunicorn_worker import BodyTimeout, ConnectionWorker, TimedReader
from container.frontend.web.connections import BYTES_A_SECOND, SLOW_READ_S, Connection, Phase


class Reader:
    """Gives a byte after each pause."""

    def __init__(self, connection: Connection, pause_s: float) -> None:
        self._connection = connection
        self._pause_s = pause_s
        self.phases: list[Phase] = []

    def read(self, size: int) -> bytes:
        self.phases.append(self._connection.phase)
        gevent.sleep(self._pause_s)
        return b"a" * size


def _read_all(timed: TimedReader, size: int, times: int) -> None:
    for _ in range(times):
        timed.read(size)


@pytest.fixture
def connection() -> Connection:
    opened = Connection(None, "a")
    opened.enter(Phase.WORKING)
    return opened


def test_a_stalled_body_is_abandoned(
    monkeypatch: pytest.MonkeyPatch, connection: Connection
) -> None:
    monkeypatch.setattr(gunicorn_worker, "BODY_S", 0.1)
    reader = Reader(connection, 30)
    timed = TimedReader(reader, connection)
    with pytest.raises(BodyTimeout):
        timed.read(1)
    assert reader.phases == [Phase.RECEIVING]
    assert connection.phase is Phase.WORKING


def test_bytes_that_trickle_do_not_prolong_it_but_many_do(
    monkeypatch: pytest.MonkeyPatch, connection: Connection
) -> None:
    monkeypatch.setattr(gunicorn_worker, "BODY_S", 0.2)
    trickling = TimedReader(Reader(connection, 0.05), connection)
    with pytest.raises(BodyTimeout):
        _read_all(trickling, 1, times=100)
    _read_all(TimedReader(Reader(connection, 0.05), connection), 1_000_000, times=8)


def test_others_run_while_tiny_chunks_are_read(connection: Connection) -> None:
    body = b"1\r\na\r\n" * 40_000 + b"0\r\n\r\n"
    chunks = ChunkedReader(SimpleNamespace(), IterUnreader(iter([body])))
    timed = TimedReader(chunks, connection)
    turns = []

    def count() -> None:
        while True:
            turns.append(1)
            gevent.sleep(1e-6)  # a timer, as a socket would be: a sleep of 0 is less than that

    other = gevent.spawn(count)
    read = b""
    while piece := timed.read(2**20):
        read += piece
    other.kill()
    assert read == b"a" * 40_000
    assert len(turns) >= 8


class SlowClient:
    """A client's socket, which notes the state of its connection while a piece is sent."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.seen: list[tuple[Phase, float]] = []

    def sendall(self, data: bytes) -> None:
        self.seen.append((self._connection.phase, self._connection.slow_after_s))

    def fileno(self) -> int:
        return 7


def test_an_answer_that_is_being_sent_can_be_told(
    monkeypatch: pytest.MonkeyPatch, connection: Connection
) -> None:
    def answer(_: object, name: str, req: object, sock: SlowClient, addr: object) -> bool:
        sock.sendall(b"a" * 3 * BYTES_A_SECOND)
        assert connection.phase is Phase.WORKING
        assert sock.fileno() == 7
        return True

    monkeypatch.setattr(GeventWorker, "handle_request", answer)
    worker = ConnectionWorker.__new__(ConnectionWorker)
    worker.alive, worker._local = True, SimpleNamespace(connection=connection)
    client = SlowClient(connection)
    request = SimpleNamespace(body=SimpleNamespace(reader=None), path="/")
    assert worker.handle_request("", request, client, None)
    assert client.seen == [(Phase.SENDING, SLOW_READ_S + 3)]
