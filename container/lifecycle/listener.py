"""The socket on which HTTP connections arrive.

It outlives gunicorn, so that connections wait in its backlog while gunicorn is started again.
"""

import socket

BACKLOG = 2048


def open_listener(host: str, port: int) -> socket.socket:
    """Bind a socket that a child process can inherit. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
