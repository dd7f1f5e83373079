"""gunicorn's worker with a table of its connections, and a time limit for bodies.

Headers have gunicorn's: `keepalive` seconds from the start of a connection or its last answer.
"""

import logging
import os
import resource
import socket
import time
from typing import Any

import gevent
import gevent.local
import gunicorn.util
from gunicorn.http.body import ChunkedReader
from gunicorn.workers.ggevent import GeventWorker

from container.frontend.generation.offloading import YIELD_S
from container.frontend.web.connections import (
    BYTES_A_SECOND,
    MAX_HEALTH_CONNECTIONS,
    SLOW_READ_S,
    Connection,
    ConnectionTable,
    Phase,
)

log = logging.getLogger(__name__)

# Seconds that a body may take, and one more for each BYTES_A_SECOND.
BODY_S = 60.0
# What is read of a chunked body before other greenlets run: every byte may be a chunk.
PIECE_OF_CHUNKS = 4096
HEALTH_PATHS = ("/ping", "/health")
# A process has files and sockets that are no connections.
OTHER_FILES = 200


class BodyTimeout(TimeoutError):
    """A body took longer to arrive than it may."""


class TimedReader:
    """Reads the body of a request, within its time; it takes the place of gunicorn's reader."""

    def __init__(self, reader: Any, connection: Connection) -> None:
        self._reader = reader
        self._connection = connection
        self._began_at = time.monotonic()
        self._num_read = 0

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes, or fewer of a chunked body. Raises BodyTimeout."""
        if isinstance(self._reader, ChunkedReader):
            size = min(size, PIECE_OF_CHUNKS)
            gevent.sleep(YIELD_S)
        limit_s = BODY_S + self._num_read / BYTES_A_SECOND
        remaining_s = max(0.0, self._began_at + limit_s - time.monotonic())
        error = BodyTimeout(f"it took longer than {limit_s:.0f} s to arrive")
        # Working, or waiting: gunicorn reads the rest of a body after the answer.
        phase = self._connection.phase
        self._connection.enter(Phase.RECEIVING, self._began_at)
        try:
            with gevent.Timeout(remaining_s, error):
                data: bytes = self._reader.read(size)
        finally:
            self._connection.enter(phase)
        self._num_read += len(data)
        return data


class WatchedSocket:
    """A client's socket that notes in its connection how long the client takes to read.

    It takes the socket's place where answers are written.
    """

    def __init__(self, client: socket.socket, connection: Connection) -> None:
        self._client = client
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def sendall(self, data: bytes) -> None:
        """Send a piece of an answer; if it takes too long, the table may evict the connection."""
        phase = self._connection.phase
        patience_s = SLOW_READ_S + len(data) / BYTES_A_SECOND
        self._connection.enter(Phase.SENDING, slow_after_s=patience_s)
        try:
            self._client.sendall(data)
        finally:
            self._connection.enter(phase)


class ConnectionWorker(GeventWorker):
    """Serves the connections that its table admits.

    `orphan_drain_s` is the time that running requests have once gunicorn's master has died.
    """

    orphan_drain_s = 0.0

    def init_process(self) -> None:
        """Create the table; gunicorn calls this in the worker's process and serves in it."""
        limit = min(self.cfg.worker_connections, _raise_file_limit() - OTHER_FILES)
        if limit < self.cfg.worker_connections:
            log.warning(
                "HTTP side: at most %d connections, not MAX_CONNECTIONS=%d, since the process may "
                "not open more files (ulimit -n)",
                limit, self.cfg.worker_connections,
            )  # fmt: skip
        self._table = ConnectionTable(limit)
        self._local = gevent.local.local()
        # The table decides; those that have just been evicted still have a greenlet.
        self.worker_connections = 2 * limit + MAX_HEALTH_CONNECTIONS
        super().init_process()

    def notify(self) -> None:
        """Show the master that this worker runs; if it has died, leave the port to the next one.

        gunicorn's own worker would leave at once and cut all answers.
        """
        if self.ppid == os.getppid():
            super().notify()
        elif self.alive:
            self.alive = False
            self.cfg.set("graceful_timeout", self.orphan_drain_s)
            self._table.close_waiting()
            log.error(
                "HTTP side: gunicorn's master died; a worker finishes its requests and leaves"
            )

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        """Serve the requests of a connection, if the table admits it."""
        address = str(addr[0]) if isinstance(addr, tuple) else ""
        connection = self._table.admit(client, address)
        if connection is None:
            gunicorn.util.close(client)
            return
        self._local.connection = connection
        try:
            super().handle(listener, client, addr)
        finally:
            self._table.remove(connection)

    def handle_request(self, listener_name: Any, req: Any, sock: socket.socket, addr: Any) -> bool:
        """Answer a request. Raises StopIteration to close the connection."""
        connection: Connection = self._local.connection
        if connection.is_evicted:
            raise StopIteration
        if connection.is_for_health and req.path not in HEALTH_PATHS:
            message = "the server holds as many connections as it can (MAX_CONNECTIONS); try again"
            gunicorn.util.write_error(sock, 503, "Service Unavailable", message)
            raise StopIteration
        req.body.reader = TimedReader(req.body.reader, connection)
        connection.enter(Phase.WORKING)
        try:
            watched = WatchedSocket(sock, connection)
            is_answered = super().handle_request(listener_name, req, watched, addr)
        finally:
            connection.enter(Phase.WAITING)
        if connection.is_for_health or not self.alive:
            raise StopIteration
        return is_answered


def _raise_file_limit() -> int:
    """Allow this process as many files as its limit can be raised to; return how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 2**20
