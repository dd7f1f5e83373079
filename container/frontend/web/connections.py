"""The connections of an HTTP process: how many there are, and which one a new one evicts.

    waiting (for a request) -> receiving (its body) <-> working <-> sending (its answer) -> waiting

At the limit, a new connection evicts one that waits for a request, or else one whose body is slow,
or whose client does not read its answer.
The victim belongs to the address with the most connections, so that no address displaces another.
A few more connections are accepted for requests about the server's health.
"""

import contextlib
import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

# Connections beyond the limit, for requests about health alone.
MAX_HEALTH_CONNECTIONS = 32
# A body that takes longer than this to arrive is slow.
SLOW_BODY_S = 5.0
# So is a client that takes longer to read a piece of an answer; bytes that give it one second more.
SLOW_READ_S = 5.0
BYTES_A_SECOND = 100_000


class Phase(Enum):
    """The state of a connection, in eviction order; working ones are never evicted."""

    WAITING = 0
    RECEIVING = 1
    SENDING = 2
    WORKING = 3


@dataclass(slots=True, eq=False)
class Connection:
    """A client's connection; `since` is when its phase began, in monotonic seconds.

    `is_for_health`: it was accepted beyond the limit. `slow_after_s`: after this it receives or
    sends too slowly.
    """

    socket: socket.socket
    address: str
    is_for_health: bool = False
    is_evicted: bool = False
    phase: Phase = Phase.WAITING
    since: float = field(default_factory=time.monotonic)
    slow_after_s: float = SLOW_BODY_S

    def enter(
        self, phase: Phase, since: float | None = None, slow_after_s: float = SLOW_BODY_S
    ) -> None:
        """Begin a phase, now or at an earlier time."""
        self.phase = phase
        self.slow_after_s = slow_after_s
        self.since = time.monotonic() if since is None else since

    def is_evictable(self, now: float) -> bool:
        """Whether closing it loses at most a request or an answer that moves too slowly."""
        is_moving = self.phase in (Phase.RECEIVING, Phase.SENDING)
        is_slow = is_moving and now - self.since > self.slow_after_s
        return self.phase is Phase.WAITING or is_slow

    def evict(self) -> None:
        """Close the connection; its reader finds the end of the stream."""
        self.is_evicted = True
        with contextlib.suppress(OSError):  # the client was faster
            self.socket.shutdown(socket.SHUT_RDWR)


class ConnectionTable:
    """Owns the connections of this process: `limit`, and MAX_HEALTH_CONNECTIONS for health."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: set[Connection] = set()
        self._for_health: set[Connection] = set()
        self._num_by_address: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._open) + len(self._for_health)

    def admit(self, client: socket.socket, address: str) -> Connection | None:
        """Add a new connection, which may evict another; None if it must be closed."""
        connection = Connection(client, address)
        if len(self._open) < self._limit or self._evict_for(address):
            self._open.add(connection)
            self._num_by_address[address] += 1
            return connection
        connection.is_for_health = True
        if len(self._for_health) >= MAX_HEALTH_CONNECTIONS and not self._evict_health():
            return None
        self._for_health.add(connection)
        return connection

    def remove(self, connection: Connection) -> None:
        """Remove a connection, which may have been evicted before."""
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

    def _evict_for(self, address: str) -> bool:
        """Evict a connection for one from `address`; return whether one could be evicted."""
        now = time.monotonic()
        candidates = [each for each in self._open if each.is_evictable(now)]
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

    def _evict_health(self) -> bool:
        waiting = [each for each in self._for_health if each.phase is Phase.WAITING]
        if waiting:
            self._close(min(waiting, key=lambda connection: connection.since))
        return bool(waiting)

    def _close(self, connection: Connection) -> None:
        connection.evict()
        self.remove(connection)
