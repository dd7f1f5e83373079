"""The supervisor's children, each a real process that runs a module written by the test."""

import os
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
