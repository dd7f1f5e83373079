"""The files of the metrics on a disk with room and without."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys
if sys.argv[1] == "full":
    def posix_fallocate(*_):
        raise OSError(28, "No space left on device")
    os.posix_fallocate = posix_fallocate
from container.frontend.observability.metric_files import reserve_metric_files
reserve_metric_files()
from prometheus_client import Counter, generate_latest
counter = Counter("requests", "Requests")
counter.inc()
print(generate_latest().decode() if sys.argv[1] == "full" else os.listdir(sys.argv[2]))
"""


def _run(folder: Path, disk: str) -> "subprocess.CompletedProcess[str]":
    environ = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    command = [sys.executable, "-c", PROGRAM, disk, str(folder)]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True)


def test_the_files_have_their_room_before_they_are_mapped(tmp_path: Path) -> None:
    _run(tmp_path, "empty")
    files = list(tmp_path.iterdir())
    assert len(files) == 2
    assert all(path.stat().st_blocks * 512 >= path.stat().st_size > 0 for path in files)


def test_a_full_disk_makes_a_process_count_in_memory(tmp_path: Path) -> None:
    done = _run(tmp_path, "full")
    assert "requests_total 1.0" in done.stdout
    assert os.strerror(errno.ENOSPC) in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_nothing_is_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    from container.frontend.observability.metric_files import reserve_metric_files

    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    reserve_metric_files()
