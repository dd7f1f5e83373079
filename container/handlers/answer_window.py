"""Flow control of a stream: user code does not make it much faster than its client reads it."""

import threading

from container.errors import HandlerFailed

# Bytes of an answer that may wait to be read.
WINDOW = 8 * 2**20
# A client that reads nothing for so long loses its stream, since the worker waits for it.
STALL_S = 60.0


class AnswerWindow:
    """Counts what the client of one invocation has not read; two threads use it.

    `is_cancelled` is set once the client has left.
    """

    def __init__(self, window: int = WINDOW, stall_s: float = STALL_S) -> None:
        self.is_cancelled = threading.Event()
        self._window = window
        self._stall_s = stall_s
        self._unread = 0
        self._changed = threading.Condition()

    def add(self, size: int) -> None:
        """Wait until less than the window is unread, then count a part. Raises HandlerFailed."""
        with self._changed:
            while self._unread >= self._window and not self.is_cancelled.is_set():
                if not self._changed.wait(self._stall_s):
                    raise HandlerFailed(f"the client has read nothing for {self._stall_s:.0f} s")
            self._unread += size

    def acknowledge(self, size: int) -> None:
        """Note that the client has read this much."""
        with self._changed:
            self._unread -= size
            self._changed.notify()

    def cancel(self) -> None:
        """Let nobody wait for a client that has left."""
        self.is_cancelled.set()
        with self._changed:
            self._changed.notify()
