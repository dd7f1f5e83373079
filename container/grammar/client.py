"""The engine's side of grammars: starts the fork server and talks to the grammar processes.

    engine -- socket, grammar --> fork server -- fork --> grammar process
       \\________________ tokens, bitmasks ________________/

Synchronous and without threads: `wait` reads what has arrived. A process that dies or takes too
long fails its own requests; no call here waits for one.
"""

import contextlib
import logging
import os
import selectors
import socket
import subprocess
import sys
import time
import weakref
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import IO

import msgspec

from container.engine.sequence import Constraint
from container.errors import ServingError, Unavailable
from container.grammar.constraint import GrammarProcess
from container.grammar.protocol import (
    MAX_MESSAGE,
    READY,
    Ended,
    Failed,
    ForkServerArgs,
    GrammarLimits,
    Started,
    from_process_decoder,
    limit_error,
)

log = logging.getLogger(__name__)

# Processes kept for later requests with the same grammar, a few MB each.
MAX_IDLE = 16
# Grammars that compile at the same time; others wait until one has compiled or failed.
MAX_COMPILING = 16
# For the fork server: to load the largest tokenizer, and to fork once it has done so.
START_TIMEOUT_S = 30.0
FORK_TIMEOUT_S = 5.0
# A fork server that dies earlier is replaced for the next grammar only, not again and again.
LIFETIME_S = 5.0
# Where a process does not end itself, because it was stopped; on a busy machine its end takes time.
DEADLINE_SLACK_S = 5.0
CHECK_INTERVAL_S = 0.1
MAX_STARTS = 3


class GrammarServerFailed(Exception):
    """The fork server could not load the model's tokenizer."""


class GrammarClient:
    """Owns the fork server and the grammar processes of one engine; implements Grammars."""

    def __init__(self, args: ForkServerArgs) -> None:
        """Start the fork server, which loads the tokenizer meanwhile."""
        self._args = args
        self._limits: GrammarLimits = args.limits
        self._by_text: dict[str, GrammarProcess] = {}
        self._idle: OrderedDict[str, GrammarProcess] = OrderedDict()
        self._queue: deque[GrammarProcess] = deque()
        self._selector = selectors.DefaultSelector()
        self._next_check = 0.0
        self._is_loaded = False
        self._server_started_at = 0.0
        self._start_server()

    def check(self) -> None:
        """Wait until the tokenizer is loaded. Raises GrammarServerFailed."""
        self._control.settimeout(START_TIMEOUT_S)
        try:
            answer = self._control.recv(MAX_MESSAGE)
        except TimeoutError:
            answer = b"it took too long"
        self._control.settimeout(None)
        self._is_loaded = answer == READY
        if not self._is_loaded:
            raise GrammarServerFailed(answer.decode(errors="replace") or "its process died")

    def close(self) -> None:
        """End the fork server and all processes."""
        for process in list(self._by_text.values()):
            self._end(process, Unavailable("the server shuts down"))
        _end_server(self._server, self._control)

    def compile(self, grammar: str) -> Constraint:
        """Return a constraint that is ready once its grammar has compiled, or has an error."""
        process = self._by_text.get(grammar)
        if process is not None and process.channel is not None:
            self._read(process)  # it may have died between two messages
        if process is None or process.has_ended:
            process = self._by_text[grammar] = GrammarProcess(grammar, self._cache_idle)
            self._queue.append(process)
        self._idle.pop(grammar, None)
        constraint = process.open()
        self._start_queued()
        return constraint

    def wait(self, is_done: Callable[[], bool], timeout_s: float) -> None:
        """Read answers until `is_done`, or the time is up. Reads once in any case."""
        until = time.monotonic() + timeout_s
        left = 0.0
        while True:
            for key, _ in self._selector.select(min(left, CHECK_INTERVAL_S)):
                self._read(key.data)
            for process in self._by_text.values():
                process.flush()
            self._end_overdue()
            self._start_queued()
            left = until - time.monotonic()
            if left <= 0 or is_done():
                return

    def _read(self, process: GrammarProcess) -> None:
        assert process.channel is not None
        while not process.has_ended:
            try:
                frame = process.channel.recv(MAX_MESSAGE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                frame = b""
            if not frame:
                code = "unknown" if process.exit_code is None else process.exit_code
                self._give_up(process, f"died ({code})")
                return
            message = from_process_decoder.decode(frame)
            if isinstance(message, Started):
                process.is_started, process.num_starts = True, 0
                process.start_deadline(self._limits.timeout_s + DEADLINE_SLACK_S)
            elif isinstance(message, Ended):
                process.exit_code = message.code
            elif isinstance(message, Failed) and message.number == 0:
                self._end(process, message.error.to_error())
            else:
                process.take(message)

    def _give_up(self, process: GrammarProcess, how: str) -> None:
        self._lose(process, how) if process.is_started else self._fork_again(process)

    def _lose(self, process: GrammarProcess, how: str) -> None:
        """Fail the requests of a process that died at one of its limits, or start it again."""
        if (over_limit := limit_error(process.exit_code, self._limits)) is not None:
            log.warning(
                "grammar: a process ended at a limit (%s); its requests fail", process.exit_code
            )
            self._end(process, over_limit)
            return
        log.warning("grammar: a process %s, by no limit of its own; replacing it", how)
        error = Unavailable("the process that followed the grammar died twice", retry_after_s=5)
        if process.count_death(error):
            self._start_again(process)
        else:
            self._end(process, error)

    def _fork_again(self, process: GrammarProcess) -> None:
        """Start a process whose fork has failed, most likely because the fork server died."""
        if process.num_starts == MAX_STARTS:
            log.error("grammar: forking failed %d times; a request fails", MAX_STARTS)
            self._end(process, Unavailable("grammars cannot be compiled now", retry_after_s=5))
            return
        if process.server_pid == self._server.pid:
            self._restart_server()
        self._start_again(process)

    def _start_again(self, process: GrammarProcess) -> None:
        assert process.channel is not None
        self._selector.unregister(process.channel)
        process.start_again()
        self._queue.append(process)

    def _end_overdue(self) -> None:
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + CHECK_INTERVAL_S
        if now > self._server_started_at + LIFETIME_S and self._server.poll() is not None:
            self._restart_server()
        for process in [p for p in self._by_text.values() if p.is_overdue(now)]:
            if not process.has_ended:  # with the fork server, which another has had replaced
                self._give_up(process, "hangs")

    def _end(self, process: GrammarProcess, error: ServingError) -> None:
        if process.channel is not None:
            self._selector.unregister(process.channel)
        process.fail_all(error)
        if self._by_text.get(process.text) is process:
            del self._by_text[process.text]
        self._idle.pop(process.text, None)
        with contextlib.suppress(ValueError):
            self._queue.remove(process)

    def _cache_idle(self, process: GrammarProcess) -> None:
        """Cache a process without constraints; end it if it has not compiled."""
        if process.has_ended:
            return
        if process.first_mask is None or process.server_pid != self._server.pid:
            self._end(process, Unavailable("no request waits for this grammar"))
            return
        self._idle[process.text] = process
        while len(self._idle) > MAX_IDLE:
            self._end(next(iter(self._idle.values())), Unavailable("no request uses this grammar"))

    def _start_queued(self) -> None:
        if not self._queue:
            return
        num_compiling = sum(process.is_compiling for process in self._by_text.values())
        while self._queue and num_compiling < MAX_COMPILING:
            self._start(self._queue.popleft())
            num_compiling += 1

    def _start(self, process: GrammarProcess) -> None:
        local_end, remote_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with remote_end, _anonymous_file(process.text.encode()) as text:
            process.channel = local_end
            process.num_starts += 1
            process.server_pid = self._server.pid
            process.start_deadline(FORK_TIMEOUT_S if self._has_loaded() else START_TIMEOUT_S)
            self._selector.register(local_end, selectors.EVENT_READ, process)
            descriptors = array("i", [remote_end.fileno(), text.fileno()])
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)
            # Not send_fds, which ignores flags.
            with contextlib.suppress(OSError):  # the server has died or hangs; see _fork_again
                self._control.sendmsg([b"fork"], [rights], socket.MSG_DONTWAIT)

    def _has_loaded(self) -> bool:
        """Whether the fork server has loaded the tokenizer."""
        if not self._is_loaded:
            with contextlib.suppress(OSError):  # not yet, or it has died
                self._is_loaded = self._control.recv(MAX_MESSAGE, socket.MSG_DONTWAIT) == READY
        return self._is_loaded

    def _restart_server(self) -> None:
        """Replace the fork server; of its processes, only those in use go on."""
        log.error("grammar: the fork server died or hangs; replacing it")
        _end_server(self._server, self._control)
        self._start_server()
        for process in list(self._idle.values()):
            self._end(process, Unavailable("no request uses this grammar"))

    def _start_server(self) -> None:
        self._is_loaded = False
        self._server_started_at = time.monotonic()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "container.grammar.fork_server", str(theirs.fileno())]
        with theirs, _anonymous_file(msgspec.json.encode(self._args)) as arguments:
            self._server = subprocess.Popen(
                command,
                stdin=arguments,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "RUST_BACKTRACE": "0"},
            )
        # For an engine that is dropped without `close`, as at the exit of the process.
        weakref.finalize(self, _end_server, self._server, self._control)


def _end_server(server: subprocess.Popen[bytes], control: socket.socket) -> None:
    control.close()
    server.kill()
    server.wait()


def _anonymous_file(content: bytes) -> IO[bytes]:
    file = open(os.memfd_create("grammar"), "w+b")  # noqa: SIM115  # the caller closes it
    file.write(content)
    file.flush()
    file.seek(0)
    return file
