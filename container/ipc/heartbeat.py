"""Heartbeats: how a process shows the one that started it that it runs and makes progress.

A thread writes a beat a second to a pipe, with the time that the main loop has spent in its current
round. So a process that is stopped falls silent, one that hangs in a step says so, and a step that
takes long, or a start, is no silence.
"""

import contextlib
import os
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

BEAT_S = 1.0
# Loading may hold Python's lock for long, as when it maps large libraries from a cold disk.
START_SILENCE_S = 600.0
_BEAT = struct.Struct("<d?")  # the age of the round in seconds; whether the process is ready


class Heartbeat:
    """Writes the beats of this process; the main loop calls `mark` in each round."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rounds = 0
        self._is_ready = False
        os.set_blocking(fd, False)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], variable: str) -> "Heartbeat | None":
        """Return the heartbeat on the pipe that the variable names, if it names one."""
        return cls(int(environ[variable])) if variable in environ else None

    def start(self) -> None:
        """Begin to beat, in a daemon thread."""
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def mark(self, *, is_ready: bool) -> None:
        """Begin another round of the main loop."""
        self._rounds += 1
        if is_ready != self._is_ready:
            self._is_ready = is_ready
            self.write(0.0)  # another limit of silence holds from now on

    def write(self, age_s: float) -> None:
        """Write a beat, unless the pipe is full or closed: then no process reads it."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._fd, _BEAT.pack(age_s, self._is_ready))

    def _beat(self) -> None:
        rounds, age_s, last = self._rounds, 0.0, time.monotonic()
        while True:
            now = time.monotonic()
            # Of a pause of the whole container only a moment counts.
            age_s = age_s + min(now - last, 2 * BEAT_S) if rounds == self._rounds else 0.0
            rounds, last = self._rounds, now
            self.write(age_s)
            time.sleep(BEAT_S)


@dataclass(frozen=True, slots=True)
class HeartbeatLimits:
    """Seconds of silence, and seconds of one round, after which a process counts as hung; 0: none.

    The limit of silence holds once the process is ready.
    """

    silence_s: float
    round_s: float


class HeartbeatMonitor:
    """Reads the beats of a child process; `fd` is the end of the pipe for the child."""

    def __init__(self, limits: HeartbeatLimits) -> None:
        self._limits = limits
        self._read_fd, self.fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        self._round_s = 0.0
        self._is_ready = False
        self._silence_s = 0.0
        self._looked_at = time.monotonic()

    def close_child_end(self) -> None:
        """Close the child's end in this process, once the child has it."""
        os.close(self.fd)

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._read_fd)

    def hang(self) -> str | None:
        """Return why the child counts as hung, or None; call it several times a second."""
        now = time.monotonic()
        elapsed_s, self._looked_at = now - self._looked_at, now
        if self._read():
            self._silence_s = 0.0
        else:
            # Of a pause of this process, which stops the child too, only a moment counts.
            self._silence_s += min(elapsed_s, BEAT_S)
        limit_s = self._limits.silence_s if self._is_ready else START_SILENCE_S
        if self._limits.silence_s and self._silence_s > limit_s:
            return f"no sign of life for {self._silence_s:.0f} s (HEARTBEAT_TIMEOUT)"
        if self._limits.round_s and self._round_s > self._limits.round_s:
            return f"one step has taken more than {self._limits.round_s:.0f} s (STEP_TIMEOUT)"
        return None

    def _read(self) -> bool:
        """Read all beats; return whether there was one."""
        try:
            beats = os.read(self._read_fd, 1 << 16)
        except BlockingIOError:
            return False
        if not beats:  # the child has closed its end
            return False
        self._round_s, self._is_ready = _BEAT.unpack(beats[-_BEAT.size :])
        return True
