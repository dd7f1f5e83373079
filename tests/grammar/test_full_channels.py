"""Full channels, late readers, stopped processes: the engine does not wait and loses nothing."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from container.errors import InvalidParameter
from container.grammar.client import GrammarClient
from container.grammar.fork_server import _ForkServer
from container.grammar.forms import choice_answer, regex_answer
from container.grammar.process import FAST_S, _Budget
from container.grammar.protocol import (
    MAX_MESSAGE,
    Ended,
    GrammarLimits,
    Started,
    encode,
    from_process_decoder,
    limit_error,
)
from tests.grammar.clients import TOKENIZER, args, await_end, children, follow, start, wait

# A channel has room for less than ten of its bitmasks, of 32 KB.
LARGE_VOCABULARY = 256 * 1024
LETTERS = regex_answer("a*", "f")
[LETTER] = TOKENIZER.encode("a", add_special_tokens=False)


def test_a_process_that_waits_for_a_long_step_is_no_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("container.grammar.client.DEADLINE_SLACK_S", 1.0)
    client = GrammarClient(args(2.0, LARGE_VOCABULARY))
    client.check()
    constraints = [wait(client, start(client, LETTERS)) for _ in range(40)]
    pids = children(client)
    for constraint in constraints:
        constraint.accept(LETTER)
    time.sleep(3.5)  # longer than the limit and the deadline
    client.wait(lambda: all(c.is_ready for c in constraints), 30.0)
    assert [c.error for c in constraints] == [None] * 40
    assert all(c.is_ready for c in constraints)
    assert children(client) == pids
    client.close()


def test_many_long_sequences_go_on_in_another_process() -> None:
    client = GrammarClient(args(10.0, LARGE_VOCABULARY))
    client.check()
    constraints: list[Any] = [wait(client, start(client, LETTERS)) for _ in range(40)]
    for constraint in constraints:  # as if they had followed so many
        constraint.token_ids = [LETTER] * 8000
    os.kill(children(client)[0], signal.SIGKILL)
    for constraint in constraints:
        constraint.accept(LETTER)
    client.wait(lambda: all(c.is_ready for c in constraints), 60.0)
    assert all(c.is_ready for c in constraints)
    assert [c.error for c in constraints] == [None] * 40
    assert [follow(client, c, "a") for c in constraints[:2]] == [1, 1]
    client.close()


def test_a_stopped_process_does_not_hold_the_engine_up() -> None:
    client = GrammarClient(args(10.0))
    client.check()
    constraint = wait(client, start(client, LETTERS))
    [pid] = children(client)
    os.kill(pid, signal.SIGSTOP)
    copies = [constraint.copy() for _ in range(3000)]
    for copy in copies:
        copy.accept(LETTER)
    client.wait(lambda: False, 0.0)
    assert not any(copy.is_ready for copy in copies)
    os.kill(pid, signal.SIGCONT)
    client.wait(lambda: all(copy.is_ready for copy in copies), 60.0)
    assert all(copy.is_ready and copy.error is None for copy in copies)
    assert children(client) == [pid]
    client.close()


def test_a_stopped_fork_server_does_not_hold_the_engine_up() -> None:
    client = GrammarClient(args(10.0))
    client.check()
    wait(client, start(client, LETTERS)).close()
    os.kill(client._server.pid, signal.SIGSTOP)
    for index in range(500):
        start(client, regex_answer(f"a{{{index}}}", "f")).close()
    client.wait(lambda: False, 0.0)
    assert wait(client, start(client, choice_answer(["a"], "f"))).error is None
    client.close()


def test_an_overdue_idle_process_ends_with_the_fork_server() -> None:
    client = GrammarClient(args(10.0))
    client.check()
    used = wait(client, start(client, LETTERS))
    idle = wait(client, start(client, choice_answer(["ab"], "f")))
    pids = children(client)
    os.kill(pids[1], signal.SIGSTOP)
    idle.accept(LETTER)
    idle.close()
    os.kill(pids[0], signal.SIGKILL)
    await_end(pids[0])
    os.kill(client._server.pid, signal.SIGSTOP)
    used.accept(LETTER)
    until = time.monotonic() + 10
    while client._by_text[next(iter(client._by_text))].is_started and time.monotonic() < until:
        client.wait(lambda: False, 0.01)
    for process in client._by_text.values():
        process._deadline = 0.0
    client._next_check = 0.0
    assert wait(client, used).error is None
    await_end(pids[1])
    client.close()


def test_a_death_without_a_code_is_no_hang(caplog: pytest.LogCaptureFixture) -> None:
    client = GrammarClient(args(10.0))
    client.check()
    constraint = wait(client, start(client, LETTERS))
    [pid] = children(client)
    os.kill(client._server.pid, signal.SIGKILL)
    client._server.wait()
    os.kill(pid, signal.SIGKILL)
    assert follow(client, constraint, "a") == 1
    assert "a process died (unknown)" in caplog.text
    client.close()


def test_a_budget_pays_with_processor_time() -> None:
    def spend() -> None:
        budget = _Budget(60.0, 0.5)
        with budget.spend():
            time.sleep(0.7)
        assert budget._left_s == 0.5 + FAST_S
        with budget.spend():
            until = time.process_time() + 0.3
            while time.process_time() < until:
                pass
        assert 0.5 <= budget._left_s < 0.5 + FAST_S
        assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
        with budget.spend():
            while True:
                pass

    code = _fork(spend)
    assert code == -signal.SIGPROF
    assert isinstance(limit_error(code, GrammarLimits()), InvalidParameter)


def test_a_process_that_has_ended_before_its_kill_harms_no_other() -> None:
    assert _fork(_kill_an_ended_process) == 0


def test_the_exit_code_arrives_over_a_full_channel() -> None:
    assert _fork(_end_with_a_full_channel) == 0


def _kill_an_ended_process() -> None:
    engine, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = _ForkServer(control, None, None)  # type: ignore[arg-type]  # it forks nothing
    channel, theirs = _serve_a_child(server)
    channel.close()
    _end_child(server)
    batches = [[server._wakeup, theirs.fileno()], [control.fileno()]]
    server._events = _Batches(server._events, batches)
    engine.close()
    server.serve()
    assert not server._pids


def _end_with_a_full_channel() -> None:
    server = _ForkServer(
        socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)[0],
        None,
        None,  # type: ignore[arg-type]
    )
    channel, theirs = _serve_a_child(server)
    frames = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            theirs.send(encode(Started()), socket.MSG_DONTWAIT)
            frames += 1
    _end_child(server)
    server._report_ends()
    answers = [from_process_decoder.decode(channel.recv(MAX_MESSAGE)) for _ in range(frames + 1)]
    assert answers[-1] == Ended(-signal.SIGKILL)
    assert channel.recv(MAX_MESSAGE) == b""


class _Batches:
    """An epoll that reports its descriptors in a certain order."""

    def __init__(self, events: Any, batches: list[list[int]]) -> None:
        self._batches = batches
        self.unregister = events.unregister

    def poll(self) -> list[tuple[int, int]]:
        return [(descriptor, 1) for descriptor in self._batches.pop(0)]


def _serve_a_child(server: _ForkServer) -> tuple[socket.socket, socket.socket]:
    """Give the server a process that does nothing; return the engine's end and the other."""
    channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        signal.alarm(60)
        signal.pause()
        os._exit(0)
    server._channels[pid], server._pids[theirs.fileno()] = theirs, pid
    server._events.register(theirs.fileno(), 0)
    return channel, theirs


def _end_child(server: _ForkServer) -> None:
    [pid] = server._channels
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def _fork(act: Callable[[], None]) -> int:
    """Run a function in another process, whose signals and timers it uses; return its code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            act()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
