"""One HTTP exchange with a container, under the service's time limits.

The whole exchange shares one deadline. Leaving the `with` block closes the connection, which tells
the container that its client has disconnected.
"""

import http.client
import time
from collections.abc import Iterator, Mapping
from types import TracebackType

CONNECT_TIMEOUT_S = 0.25
PIECE_BYTES = 65536
Failure = (OSError, http.client.HTTPException)


class Exchange:
    """A sent request, whose response is read in pieces. Raises TimeoutError, Failure."""

    def __init__(
        self,
        port: int,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        *,
        timeout_s: float,
        method: str = "POST",
    ) -> None:
        self._deadline = time.monotonic() + timeout_s
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CONNECT_TIMEOUT_S)
        try:
            self._connection.connect()
            self._socket = self._connection.sock
            self._limit_wait()
            self._connection.request(method, path, body, dict(headers))
            self._limit_wait()
            self._answer = self._connection.getresponse()
        except BaseException:
            self._connection.close()
            raise
        self.status = self._answer.status
        self.headers = self._answer.headers

    def pieces(self) -> Iterator[bytes]:
        """Yield the body as it arrives."""
        while True:
            self._limit_wait()
            piece = self._answer.read1(PIECE_BYTES)
            if not piece:
                break
            yield piece
        if self._answer.length:  # fewer bytes than Content-Length promised
            raise http.client.IncompleteRead(b"", self._answer.length)

    def read(self) -> bytes:
        """Read the whole body."""
        return b"".join(self.pieces())

    def close(self) -> None:
        """Close the connection, read or not."""
        self._connection.close()
        self._answer.close()

    def __enter__(self) -> "Exchange":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _limit_wait(self) -> None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self._socket.settimeout(remaining)
