"""The process that renders chat templates: `python -m container.text.templates.process FD`.

A template is a program from the model's files and may loop for ever or ask for any amount of
memory. This process has limits on both, so that it fails or dies in the place of a server. It
reads requests from the socket FD and writes an answer to each; both are JSON behind their length.
"""

import contextlib
import json
import resource
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

from container import transformers_index
from container.garbage import collector_paused

# Limits of one rendering: processor time, memory beyond that of the idle process, and the text.
CPU_S = 2.0
MEMORY_BYTES = 512 * 2**20
MAX_CHARS = 2**24
LENGTH = struct.Struct(">Q")
# More than the sender has, so that what it can write can be read.
RECURSION_LIMIT = 2000
TOO_DEEP = "it, or one of its arguments, is nested too deeply"


def encode(message: dict[str, Any]) -> bytes:
    """Encode a message. Raises RecursionError."""
    return json.dumps(message, ensure_ascii=False).encode()


def send(connection: socket.socket, data: bytes) -> None:
    """Send an encoded message. Raises OSError."""
    connection.sendall(LENGTH.pack(len(data)))
    connection.sendall(data)


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """Wait for a message; None once the other side has closed. Raises OSError."""
    head = _receive(connection, LENGTH.size)
    data = None if head is None else _receive(connection, LENGTH.unpack(head)[0])
    if data is None:
        return None
    message: dict[str, Any] = json.loads(data)
    return message


def _receive(connection: socket.socket, num_bytes: int) -> bytes | None:
    data = bytearray()
    while len(data) < num_bytes:
        piece = connection.recv(min(num_bytes - len(data), 2**20))
        if not piece:
            return None
        data += piece
    return bytes(data)


def serve(connection: socket.socket) -> None:
    """Answer requests until the other side closes."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # not needed, and slow to import
    transformers_index.install()
    with collector_paused():
        from transformers.utils.chat_template_utils import render_jinja_template

    _limit_memory()
    sys.setrecursionlimit(RECURSION_LIMIT)
    while (request := receive(connection)) is not None:
        # At its end the signal kills this process, even within native code.
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        answer = _answer(render_jinja_template, request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(connection, encode(answer))


def _answer(render: Any, request: dict[str, Any]) -> dict[str, Any]:
    try:
        [text], _ = render(conversations=[request.pop("messages")], **request)
        if len(text) > MAX_CHARS:
            raise ValueError(f"it wrote more than {MAX_CHARS} characters")
    except RecursionError:
        return {"error": TOO_DEEP, "is_type": False}
    except MemoryError:
        return {"error": f"it needs more than {MEMORY_BYTES >> 20} MiB of memory", "is_type": False}
    except Exception as error:  # a template can raise anything
        # Further lines of transformers' messages repeat the rendered text.
        first_line = str(error).partition("\n")[0]
        return {"error": first_line, "is_type": isinstance(error, TypeError)}
    return {"text": text}


def _limit_memory() -> None:
    with contextlib.suppress(OSError, ValueError):  # not on macOS
        num_pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = num_pages * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as inherited, contextlib.suppress(OSError):
        inherited.setblocking(True)  # gevent has made it non-blocking
        serve(inherited)
