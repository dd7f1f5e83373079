"""HTTP servers of the standard library that answer in this process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import BaseServer
from typing import TypeVar

S = TypeVar("S", bound=BaseServer)
POLL_S = 0.01  # by default `shutdown` may wait for half a second


@contextmanager
def in_background(server: S) -> Iterator[S]:
    """Let a server answer from a thread of its own until the block ends."""
    options = {"poll_interval": POLL_S}
    thread = threading.Thread(target=server.serve_forever, kwargs=options, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
