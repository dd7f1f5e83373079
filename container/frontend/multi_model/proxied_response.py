"""The response of a model's server, forwarded as it arrives."""

import http.client
import socket
from collections.abc import Iterator
from contextlib import closing

import gevent.select

from container.content import EVENTS
from container.errors import NotFound, Unavailable
from container.frontend.multi_model.model_server import ModelServer
from container.frontend.web import error_responses
from container.frontend.web.error_responses import tgi_body
from container.frontend.web.responses import DISCONNECT_POLL_S, check_client

MAX_CHUNK = 65_536


class ProxiedResponse:
    """The response of a model's server, forwarded chunk by chunk."""

    def __init__(
        self,
        server: ModelServer,
        method: str,
        path: str,
        body: bytes,
        headers: dict[str, str],
        client: socket.socket | None,
    ) -> None:
        """Wait for the status. Raises NotFound, Unavailable, or ClientDisconnected."""
        self._server = server
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port)
        try:
            self._connection.request(method, path, body, headers)
            self._wait(client)
            self._response = self._connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise self._lost(error) from error
        except BaseException:  # raised again: a client that left, or the end of the greenlet
            self._connection.close()
            raise
        self.status = self._response.status
        self.headers = self._response.getheaders()

    def chunks(self) -> Iterator[bytes]:
        """Yield the body in the chunks in which it arrives; a lost stream ends with an error."""
        with closing(self._connection):
            try:
                while chunk := self._response.read1(MAX_CHUNK):
                    yield chunk
            except (OSError, http.client.HTTPException) as error:
                if not self._response.getheader("Content-Type", "").startswith(EVENTS):
                    raise
                body = error_responses.json_bytes(tgi_body(self._lost(error)))
                yield b"\n\ndata: " + body + b"\n\n"

    def close(self) -> None:
        """Close the connection, so that the model's server aborts the request."""
        self._connection.close()

    def _wait(self, client: socket.socket | None) -> None:
        """Wait for the first byte. Raises ClientDisconnected if the client leaves."""
        while not gevent.select.select([self._connection.sock], [], [], DISCONNECT_POLL_S)[0]:
            check_client(client)

    def _lost(self, error: Exception) -> NotFound | Unavailable:
        if self._server.has_left():
            return NotFound(f"model {self._server.name!r} died and is not loaded any more")
        return Unavailable(f"model {self._server.name!r} does not answer: {error}")
