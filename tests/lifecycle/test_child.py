"""The supervisor's children, each a real process that runs a module written by the test."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from container.errors import ExitCode
from container.ipc.heartbeat import HeartbeatLimits
from container.lifecycle.child import MAX_RESTARTS, RESTART_WINDOW_S, Child
from tests.support.servers import wait_for

ROOT = Path(__file__).parents[2]


def _child(folder: Path, program: str, now: Callable[[], float] = time.monotonic) -> Child:
    (folder / "program.py").write_text(program)
    environ = os.environ | {"PYTHONPATH": str(folder)}
    return Child("child", "program", environ=environ, now=now)


STOPPED = """
import os, signal, threading, time
from container.ipc.heartbeat import Heartbeat
beat = Heartbeat(int(os.environ["CONTAINER_HEARTBEAT_FD"]))
beat.start()
beat.mark(is_ready=True)
time.sleep(1.5)
beat.mark(is_ready=True)
%s
"""


@pytest.mark.parametrize(
    ("program", "limits", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSTOP)", HeartbeatLimits(2, 0), "HEARTBEAT_TIMEOUT"),
        ("time.sleep(600)", HeartbeatLimits(60, 2), "STEP_TIMEOUT"),
    ],
    ids=["stopped", "hung"],
)
def test_a_child_that_hangs_is_replaced(
    tmp_path: Path,
    program: str,
    limits: HeartbeatLimits,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "program.py").write_text(STOPPED % program)
    environ = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    child = Child("child", "program", environ=environ, heartbeat=limits)
    pid = child.pid
    try:
        wait_for(lambda: child.keep_alive() is None and child.pid != pid, 60)
        assert reason in caplog.text
        assert not psutil.pid_exists(pid)
        assert child.poll() is None
    finally:
        child.kill()
        child.wait(time.monotonic() + 20)


def _wait_left(child: Child) -> None:
    wait_for(lambda: child.poll() is not None, 20)


def test_a_child_that_dies_is_started_again_a_few_times(tmp_path: Path) -> None:
    child = _child(tmp_path, "raise SystemExit(1)")
    for _ in range(MAX_RESTARTS):
        _wait_left(child)
        assert child.keep_alive() is None
    _wait_left(child)
    assert child.keep_alive() == ExitCode.RESTARTS_EXHAUSTED


def test_only_the_restarts_of_the_last_minutes_count(tmp_path: Path) -> None:
    clock = [0.0]
    child = _child(tmp_path, "raise SystemExit(1)", lambda: clock[0])
    for _ in range(MAX_RESTARTS + 2):
        _wait_left(child)
        assert child.keep_alive() is None
        clock[0] += RESTART_WINDOW_S / MAX_RESTARTS + 1
    for _ in range(MAX_RESTARTS):
        _wait_left(child)
        code = child.keep_alive()
    assert code == ExitCode.RESTARTS_EXHAUSTED


@pytest.mark.parametrize("code", [2, 3])
def test_a_child_with_a_final_exit_code_is_not_restarted(tmp_path: Path, code: int) -> None:
    child = _child(tmp_path, f"raise SystemExit({code})")
    _wait_left(child)
    assert child.keep_alive() == code
