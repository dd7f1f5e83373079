"""The machine's memory, within the limit of the container that this process runs in."""

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


def free_memory_bytes() -> int:
    """Return how much memory this process may still take: free memory within the cgroup's limit."""
    available: int = psutil.virtual_memory().available
    limited = _cgroup_free_bytes()
    return available if limited is None else min(available, limited)


def _cgroup_free_bytes() -> int | None:
    """Return the rest of the cgroup's memory limit; None without a limit."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        current = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return max(0, int(limit) - current) if limit.isdigit() else None
