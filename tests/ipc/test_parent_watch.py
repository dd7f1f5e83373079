"""The orphan check, in processes whose parent dies."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from container.ipc.parent_watch import is_orphan
from tests.support.servers import wait_for

POLL = "while not is_orphan(int(sys.argv[1])): time.sleep(0.05)"
THREAD = "watch_parent(int(sys.argv[1]), lambda: os._exit(0), 0.05)\ntime.sleep(60)"
CHILD = """
import os, sys, time
from container.ipc.parent_watch import is_orphan, watch_parent
open(sys.argv[2], "w").write(str(os.getpid()))
{}
"""
PARENT = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid()), sys.argv[2]])
time.sleep(60)
"""


def test_the_parent_of_a_test_is_alive() -> None:
    assert not is_orphan(os.getppid())
    assert is_orphan(os.getpid())


@pytest.mark.parametrize("watch", [POLL, THREAD], ids=["poll", "thread"])
def test_a_process_ends_with_its_parent(tmp_path: Path, watch: str) -> None:
    started = tmp_path / "started"
    command = [sys.executable, "-c", PARENT, CHILD.format(watch), str(started)]
    with subprocess.Popen(command) as parent:
        wait_for(lambda: started.exists() and bool(started.read_text()), 20)
        parent.kill()
    pid = int(started.read_text())
    wait_for(lambda: not _is_running(pid), 20)


def _is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
