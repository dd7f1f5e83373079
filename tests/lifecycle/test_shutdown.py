"""The end of the container: real processes, some of which ignore SIGTERM, and short budgets."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from container.lifecycle.child import Child
from container.lifecycle.shutdown import STOP_BUDGET_S, StopSchedule, drain, kill, stop_frontends
from container.settings.settings import Settings
from tests.support.servers import wait_for

SAGEMAKER_KILLS_AFTER_S = 30
READY = "import pathlib, signal, subprocess, sys, time\n{}\npathlib.Path(sys.argv[1]).touch()\n"
HUNG = READY.format("signal.signal(signal.SIGTERM, signal.SIG_IGN)") + "time.sleep(60)\n"
BUSY = (
    READY.format("signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), sys.exit(0)))")
    + "time.sleep(60)\n"
)
HUNG_WITH_A_CHILD = HUNG.replace(
    "pathlib.Path", "subprocess.Popen(['sleep', '60'])\npathlib.Path", 1
)

Start = Callable[[str, str], Child]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    children = []

    def start_child(name: str, program: str) -> Child:
        module, ready = f"program_{name}", tmp_path / f"{name}.ready"
        (tmp_path / f"{module}.py").write_text(program)
        environ = os.environ | {"PYTHONPATH": str(tmp_path)}
        children.append(Child(name, module, str(ready), environ=environ))
        wait_for(ready.exists, 20)
        return children[-1]

    yield start_child
    kill(children)


def test_the_default_budgets_end_before_sagemaker_kills() -> None:
    schedule = StopSchedule.starting_at(0.0, Settings.from_environ({}).server.drain_s)
    assert schedule.drain_until < schedule.kill_at < schedule.end_at
    assert schedule.end_at <= STOP_BUDGET_S <= SAGEMAKER_KILLS_AFTER_S - 2


def test_a_busy_child_finishes_its_work(start: Start) -> None:
    child = start("busy", BUSY)
    drain([[child]], StopSchedule.starting_at(time.monotonic(), 20))
    assert child.poll() == 0


def test_a_child_that_exits_at_once_ends_the_drain(start: Start) -> None:
    child = start("busy", BUSY)
    started = time.monotonic()
    drain([[child]], StopSchedule.starting_at(started, 20))
    assert time.monotonic() - started < 10


def test_hung_children_share_one_deadline(start: Start) -> None:
    groups = [
        [start("handler", HUNG_WITH_A_CHILD)],
        [start("engine0", HUNG), start("engine1", HUNG), start("engine2", HUNG)],
        [start("embedder", HUNG)],
    ]
    frontends = start("frontends", HUNG)
    children = [child for group in groups for child in group]
    grandchildren = psutil.Process(groups[0][0].pid).children()
    assert grandchildren
    schedule = StopSchedule.starting_at(time.monotonic(), 0.5)
    drain(groups, schedule)
    assert time.monotonic() == pytest.approx(schedule.kill_at, abs=0.5)
    assert [child.poll() for child in children] == [None] * 5
    kill(children)
    stop_frontends(frontends, schedule.end_at)
    assert time.monotonic() <= schedule.end_at
    assert [child.poll() for child in [*children, frontends]] == [-9] * 6
    wait_for(lambda: not any(process.is_running() for process in grandchildren), 5)


def test_a_hung_group_does_not_keep_the_next_one_from_finishing(start: Start) -> None:
    hung, busy = start("hung", HUNG), start("busy", BUSY)
    drain([[hung], [busy]], StopSchedule.starting_at(time.monotonic(), 0.2))
    assert (hung.poll(), busy.poll()) == (None, 0)


def test_gunicorn_is_killed_after_its_grace_when_time_is_left(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container.lifecycle.shutdown.FRONTENDS_GRACE_S", 0.2)
    frontends = start("frontends", HUNG)
    started = time.monotonic()
    stop_frontends(frontends, started + 20)
    assert frontends.poll() == -9
    assert time.monotonic() - started < 5
