"""Which connection gives way when all places are taken."""

from container.frontend.web.connections import (
    MAX_HEALTH_CONNECTIONS,
    SLOW_BODY_S,
    SLOW_READ_S,
    Connection,
    ConnectionTable,
    Phase,
)


class Socket:
    """A socket that remembers that it was shut down."""

    is_shut = False

    def shutdown(self, how: int) -> None:
        self.is_shut = True


def _is_shut(connection: Connection) -> bool:
    socket: object = connection.socket
    assert isinstance(socket, Socket)
    return socket.is_shut


def _fill(table: ConnectionTable, count: int, address: str) -> list[Connection]:
    admitted = [table.admit(Socket(), address) for _ in range(count)]
    for age, connection in enumerate(reversed(admitted)):
        connection.since -= age
    return admitted


def test_the_longest_idle_connection_is_closed() -> None:
    table = ConnectionTable(4)
    old = _fill(table, 4, "a")
    old[0].enter(Phase.WORKING)
    new = table.admit(Socket(), "a")
    assert [_is_shut(connection) for connection in old] == [False, True, False, False]
    assert not new.is_for_health
    assert len(table) == 4


def test_the_address_with_most_connections_loses_one() -> None:
    table = ConnectionTable(4)
    quiet = _fill(table, 1, "quiet")
    quiet[0].since -= 100
    greedy = _fill(table, 3, "greedy")
    assert table.admit(Socket(), "new") is not None
    assert not _is_shut(quiet[0])
    assert [_is_shut(connection) for connection in greedy] == [True, False, False]


def test_an_address_displaces_no_smaller_one() -> None:
    table = ConnectionTable(4)
    quiet = _fill(table, 1, "quiet")
    for connection in _fill(table, 3, "greedy"):
        connection.enter(Phase.WORKING)
    assert table.admit(Socket(), "greedy").is_for_health
    assert not _is_shut(quiet[0])


def test_a_client_that_does_not_read_its_answer_gives_way() -> None:
    table = ConnectionTable(2)
    stalled, reading = _fill(table, 2, "a")
    for connection in (stalled, reading):
        connection.enter(Phase.SENDING, slow_after_s=SLOW_READ_S)
    assert table.admit(Socket(), "a").is_for_health
    stalled.since -= SLOW_READ_S + 1
    assert not table.admit(Socket(), "a").is_for_health
    assert _is_shut(stalled)
    assert not _is_shut(reading)


def test_slow_bodies_are_closed_and_running_requests_never() -> None:
    table = ConnectionTable(2)
    slow, busy = _fill(table, 2, "a")
    slow.enter(Phase.RECEIVING)
    busy.enter(Phase.WORKING)
    assert table.admit(Socket(), "a").is_for_health
    slow.since -= SLOW_BODY_S + 1
    assert not table.admit(Socket(), "a").is_for_health
    assert _is_shut(slow)
    assert not _is_shut(busy)


def test_beyond_the_limit_there_are_places_for_health_only() -> None:
    table = ConnectionTable(2)
    for connection in _fill(table, 2, "a"):
        connection.enter(Phase.WORKING)
    extra = [table.admit(Socket(), "b") for _ in range(MAX_HEALTH_CONNECTIONS)]
    assert all(connection.is_for_health for connection in extra)
    for connection in extra:
        connection.enter(Phase.WORKING)
    assert table.admit(Socket(), "c") is None
    table.remove(extra[0])
    table.remove(extra[0])
    assert table.admit(Socket(), "c").is_for_health
    extra[1].enter(Phase.WAITING, since=0.0)
    assert table.admit(Socket(), "c").is_for_health
    assert _is_shut(extra[1])
