"""What gunicorn itself refuses (a line too long, a header that is none), as JSON, like all else."""

import json
import socket

import gunicorn.util


def answer_in_json() -> None:
    """Make gunicorn send JSON instead of its page of HTML, in this process and its children."""
    gunicorn.util.write_error = _write_error


def _write_error(sock: socket.socket, status_int: int, reason: str, mesg: str) -> None:
    """Send an error and close; takes the place of gunicorn.util.write_error."""
    error_type = "validation" if status_int < 500 else "internal"
    body = json.dumps({"error": mesg or reason, "error_type": error_type}).encode()
    head = (
        f"HTTP/1.1 {status_int} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    gunicorn.util.write_nonblock(sock, head.encode("latin1") + body)
