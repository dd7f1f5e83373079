"""Free and total memory: the machine's, within the limit of a cgroup."""

from pathlib import Path

import psutil
import pytest

from container import machine


@pytest.fixture(autouse=True)
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    memory = type("Memory", (), {"available": 1000, "total": 3000})()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    return tmp_path


@pytest.mark.parametrize(
    ("limit", "current", "free"),
    [
        ("max", "100", 1000),
        ("500", "100", 400),
        ("5000", "100", 1000),
        ("500", "600", 0),
        ("500", "nonsense", 1000),
    ],
)
def test_a_limit_counts_where_it_is_tighter(
    cgroup: Path, limit: str, current: str, free: int
) -> None:
    (cgroup / "memory.max").write_text(f"{limit}\n")
    (cgroup / "memory.current").write_text(f"{current}\n")
    assert machine.free_memory_bytes() == free


@pytest.mark.parametrize(("limit", "total"), [("max", 3000), ("500", 500), ("5000", 3000)])
def test_a_container_has_no_more_than_its_limit(cgroup: Path, limit: str, total: int) -> None:
    (cgroup / "memory.max").write_text(f"{limit}\n")
    assert machine.total_memory_bytes() == total


def test_without_cgroups_all_free_memory_counts() -> None:
    assert machine.free_memory_bytes() == 1000
    assert machine.total_memory_bytes() == 3000
