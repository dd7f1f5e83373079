"""Renders chat templates in processes of their own (container.text.templates.process)."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import weakref
from typing import Any

from container.text.templates.process import CPU_S, receive, send

# A rendering that takes all of its processor time does not hold up the others.
MAX_PROCESSES = 2
# For a rendering on a machine that has no time for it, or a process that hangs.
WHOLE_S = 30.0


class RenderError(Exception):
    """The template failed; `is_type`: by a TypeError, as of arguments in the wrong form."""

    def __init__(self, message: str, *, is_type: bool = False) -> None:
        super().__init__(message)
        self.is_type = is_type


class TemplateRenderer:
    """Owns up to `MAX_PROCESSES` processes, which start when they are needed first."""

    def __init__(self) -> None:
        self._slots = threading.BoundedSemaphore(MAX_PROCESSES)
        self._idle: list[_Process] = []
        weakref.finalize(self, _kill_all, self._idle)

    def start(self) -> None:
        """Start a process, so that the first rendering need not wait for it as long."""
        if not self._idle:
            self._idle.append(_Process())

    def render(self, **request: Any) -> str:
        """Render a template; the arguments are those of `render_jinja_template`, in JSON's types.

        Raises RenderError.
        """
        with self._slots:
            process = self._idle.pop() if self._idle else _Process()
            try:
                answer = process.ask(request)
            except BaseException:  # such as the end of the greenlet that waits
                process.kill()
                raise
            self._idle.append(process)
        if "text" not in answer:
            raise RenderError(answer["error"], is_type=answer["is_type"])
        text: str = answer["text"]
        return text

    def close(self) -> None:
        """End the processes that do nothing; later renderings start new ones."""
        _kill_all(self._idle)


def _kill_all(processes: "list[_Process]") -> None:
    while processes:
        processes.pop().kill()


class _Process:
    """One process and the socket to it."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair()
        self._connection.settimeout(WHOLE_S)
        command = [sys.executable, "-m", "container.text.templates.process", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer. Raises RenderError."""
        try:
            send(self._connection, request)
            answer = receive(self._connection)
        except TimeoutError:
            raise RenderError(f"it took longer than {WHOLE_S:.0f} s") from None
        except OSError:
            answer = None
        if answer is None:
            raise RenderError(self._cause_of_death())
        return answer

    def kill(self) -> None:
        """End it at once."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _cause_of_death(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._process.wait(1) == -signal.SIGPROF:
                return f"it took longer than {CPU_S:.0f} s of processor time"
        return "it ended the process that rendered it, for memory perhaps"
