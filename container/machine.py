"""The machine: its memory, within the limit of this process's container, and its GPUs."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

GIB = 2**30
CGROUP = Path("/sys/fs/cgroup")
QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as its driver describes it."""

    name: str
    memory_bytes: int
    driver: str

    def __str__(self) -> str:
        return f"{self.name}, {self.memory_bytes / GIB:.0f} GiB, driver {self.driver}"


def visible_gpus() -> list[Gpu]:
    """Return the GPUs that nvidia-smi lists; none without it."""
    try:
        result = subprocess.run(QUERY, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = result.stdout.strip().splitlines() if result.returncode == 0 else []
    rows = [[part.strip() for part in line.split(",")] for line in lines]
    return [
        Gpu(name, int(memory.split()[0]) * 2**20, driver)
        for name, memory, driver in rows
        if memory.split()[0].isdigit()
    ]


def free_memory_bytes() -> int:
    """Return how much memory this process may still take: free memory within the cgroup's limit."""
    available: int = psutil.virtual_memory().available
    limited = _cgroup_free_bytes()
    return available if limited is None else min(available, limited)


def total_memory_bytes() -> int:
    """Return how much memory this process's container has: the machine's, or the cgroup's limit."""
    total: int = psutil.virtual_memory().total
    limit = _cgroup_limit_bytes()
    return total if limit is None else min(total, limit)


def _cgroup_free_bytes() -> int | None:
    """Return the rest of the cgroup's memory limit; None without a limit."""
    limit = _cgroup_limit_bytes()
    try:
        current = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if limit is None else max(0, limit - current)


def _cgroup_limit_bytes() -> int | None:
    """Return the cgroup's memory limit; None without one."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
    except OSError:
        return None
    return int(limit) if limit.isdigit() else None
