"""The connections of an HTTP process: how many there are, and which gives way to a new one.

    waiting (for a request) -> receiving (its body) <-> working -> waiting ...

When all places are taken, a connection that waits gives way to a new one; if none does, one whose
body is slow. It is one of the address that has the most, so that no address takes the places of
another. A few more connections are accepted for requests about the server's health.
"""

import contextlib
import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

# Connections beyond the limit, for requests about health alone.
HEALTH_PLACES = 32
# A body that is being received for longer than this is slow.
SLOW_BODY_S = 5.0


class Phase(Enum):
    """What a connection does. The order is that in which they give way; working ones never do."""

    WAITING = 0
    RECEIVING = 1
    WORKING = 2


@dataclass(slots=True, eq=False)
class Connection:
    """A client's connection; `since` is when its phase began, in monotonic seconds.

    `is_for_health`: it was accepted beyond the limit.
    """

    socket: socket.socket
    address: str
    is_for_health: bool = False
    has_given_way: bool = False
    phase: Phase = Phase.WAITING
    since: float = field(default_factory=time.monotonic)

    def enter(self, phase: Phase, since: float | None = None) -> None:
        """Begin a phase, now or at an earlier time."""
        self.phase = phase
        self.since = time.monotonic() if since is None else since

    def may_give_way(self, now: float) -> bool:
        """Whether closing it loses at most a request that comes too slowly."""
        is_slow = self.phase is Phase.RECEIVING and now - self.since > SLOW_BODY_S
        return self.phase is Phase.WAITING or is_slow

    def give_way(self) -> None:
        """Close it; whoever reads from it finds its end."""
        self.has_given_way = True
        with contextlib.suppress(OSError):  # the client was faster
            self.socket.shutdown(socket.SHUT_RDWR)


class ConnectionTable:
    """Owns the connections of this process; at most `limit`, and HEALTH_PLACES for health."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: set[Connection] = set()
        self._for_health: set[Connection] = set()
        self._num_by_address: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._open) + len(self._for_health)

    def admit(self, client: socket.socket, address: str) -> Connection | None:
        """Add a new connection, to which another may give way; None if it must be closed."""
        connection = Connection(client, address)
        if len(self._open) < self._limit or self._make_room(address):
            self._open.add(connection)
            self._num_by_address[address] += 1
            return connection
        connection.is_for_health = True
        if len(self._for_health) >= HEALTH_PLACES and not self._make_room_for_health():
            return None
        self._for_health.add(connection)
        return connection

    def remove(self, connection: Connection) -> None:
        """Forget a connection; it may have given way before."""
        self._for_health.discard(connection)
        if connection not in self._open:
            return
        self._open.remove(connection)
        self._num_by_address[connection.address] -= 1
        if not self._num_by_address[connection.address]:
            del self._num_by_address[connection.address]

    def close_waiting(self) -> None:
        """Close all connections that wait for a request."""
        for connection in [each for each in self._open if each.phase is Phase.WAITING]:
            self._close(connection)

    def _make_room(self, address: str) -> bool:
        """Have a connection give way to one from `address`; return whether one could."""
        now = time.monotonic()
        candidates = [each for each in self._open if each.may_give_way(now)]
        if not candidates:
            return False

        def order(connection: Connection) -> tuple[int, int, float]:
            num_of_address = self._num_by_address[connection.address]
            return -num_of_address, connection.phase.value, connection.since

        victim = min(candidates, key=order)
        # An address does not take the places of those that have fewer.
        if self._num_by_address[victim.address] < self._num_by_address[address]:
            return False
        self._close(victim)
        return True

    def _make_room_for_health(self) -> bool:
        waiting = [each for each in self._for_health if each.phase is Phase.WAITING]
        if waiting:
            self._close(min(waiting, key=lambda connection: connection.since))
        return bool(waiting)

    def _close(self, connection: Connection) -> None:
        connection.give_way()
        self.remove(connection)
