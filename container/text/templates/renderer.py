"""Renders chat templates in separate processes (container.text.templates.process)."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import weakref
from typing import Any

import psutil

from container.text.templates.process import CPU_S, TOO_DEEP, encode, receive, send

# A rendering that takes all of its processor time does not hold up the others.
MAX_PROCESSES = 2
# Larger requests are rendered one at a time, so that many of them leave a process for others.
LARGE_BYTES = 100_000
# For a rendering on a machine that has no time for it, or a process that hangs.
WHOLE_S = 30.0
# A process that dies of a fault is a zombie before it can be waited for.
NO_WORK = {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}


class RenderError(Exception):
    """The template failed; `is_type`: by a TypeError, as of arguments in the wrong form."""

    def __init__(self, message: str, *, is_type: bool = False) -> None:
        super().__init__(message)
        self.is_type = is_type


class _Killed(RenderError):
    """The process was killed by SIGKILL, which its limits do not send."""


class TemplateRenderer:
    """Owns up to `MAX_PROCESSES` processes, which start when they are needed first."""

    def __init__(self) -> None:
        self._slots = threading.BoundedSemaphore(MAX_PROCESSES)
        self._large_slot = threading.BoundedSemaphore(MAX_PROCESSES - 1)
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
        try:
            data = encode(request)
        except RecursionError:
            raise RenderError(TOO_DEEP) from None
        is_large = len(data) > LARGE_BYTES
        with self._large_slot if is_large else contextlib.nullcontext(), self._slots:
            try:
                answer = self._call(data)
            except _Killed:  # by another process, or for memory that others took
                answer = self._call(data)
        if "text" not in answer:
            raise RenderError(answer["error"], is_type=answer["is_type"])
        text: str = answer["text"]
        return text

    def _call(self, data: bytes) -> dict[str, Any]:
        process = self._take_idle() or _Process()
        try:
            answer = process.call(data)
        except BaseException:  # such as the end of the greenlet that waits
            process.kill()
            raise
        self._idle.append(process)
        return answer

    def _take_idle(self) -> "_Process | None":
        """Take a process that waits for work; end those that were stopped or killed meanwhile."""
        while self._idle:
            process = self._idle.pop()
            if process.is_running:
                return process
            process.kill()
        return None

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

    def call(self, data: bytes) -> dict[str, Any]:
        """Send an encoded request and wait for its answer. Raises RenderError."""
        try:
            send(self._connection, data)
            answer = receive(self._connection)
        except TimeoutError:
            raise RenderError(f"it took longer than {WHOLE_S:.0f} s") from None
        except OSError:
            answer = None
        if answer is None:
            raise self._exit_cause()
        return answer

    @property
    def is_running(self) -> bool:
        """Whether it has neither died nor been stopped."""
        if self._process.poll() is not None:
            return False
        return psutil.Process(self._process.pid).status() not in NO_WORK

    def kill(self) -> None:
        """End it at once."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _exit_cause(self) -> RenderError:
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(1)
        if code == -signal.SIGPROF:
            return RenderError(f"it took longer than {CPU_S:.0f} s of processor time")
        kind = _Killed if code == -signal.SIGKILL else RenderError
        return kind("the process that rendered it died, perhaps at its memory limit")
