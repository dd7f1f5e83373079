"""The supervisor's children, each a real process that runs a module written by the test."""

import os
import time
from pathlib import Path

import pytest

from container.lifecycle.child import KEEPS_DYING, MAX_RESTARTS, Child
from tests.support.servers import wait_for


def _child(folder: Path, program: str) -> Child:
    (folder / "program.py").write_text(program)
    return Child("child", "program", environ=os.environ | {"PYTHONPATH": str(folder)})


def _wait_left(child: Child) -> None:
    wait_for(lambda: child.poll() is not None, 20)


def test_a_child_that_dies_is_started_again_a_few_times(tmp_path: Path) -> None:
    child = _child(tmp_path, "raise SystemExit(1)")
    for _ in range(MAX_RESTARTS):
        _wait_left(child)
        assert child.keep_alive() is None
    _wait_left(child)
    assert child.keep_alive() == KEEPS_DYING


@pytest.mark.parametrize("code", [2, 3])
def test_a_child_that_says_it_can_never_work_is_not_started_again(
    tmp_path: Path, code: int
) -> None:
    child = _child(tmp_path, f"raise SystemExit({code})")
    _wait_left(child)
    assert child.keep_alive() == code


def test_draining_waits_for_a_child_that_finishes_its_work(tmp_path: Path) -> None:
    program = (
        "import signal, sys, time, pathlib\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), sys.exit(0)))\n"
        f"pathlib.Path({str(tmp_path / 'up')!r}).touch()\n"
        "time.sleep(60)\n"
    )
    child = _child(tmp_path, program)
    wait_for((tmp_path / "up").exists, 20)
    child.begin_drain()
    child.end_drain(time.monotonic() + 20)
    assert child.poll() == 0


def test_a_child_that_does_not_drain_is_ended(tmp_path: Path) -> None:
    program = (
        "import signal, time, pathlib\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"pathlib.Path({str(tmp_path / 'up')!r}).touch()\n"
        "time.sleep(60)\n"
    )
    child = _child(tmp_path, program)
    wait_for((tmp_path / "up").exists, 20)
    child.begin_drain()
    child.end_drain(time.monotonic())
    assert child.poll() is None
    child.stop()
    assert child.poll() == -9
