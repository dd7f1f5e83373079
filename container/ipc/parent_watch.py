"""The orphan check: a process must not outlive the one that started it.

A process with a loop polls `is_orphan`; any other has a thread watch for it.
"""

import os
import threading
import time
from collections.abc import Callable

WATCH_INTERVAL_S = 0.5


def is_orphan(parent_pid: int) -> bool:
    """Return whether the process that started this one has died."""
    return os.getppid() != parent_pid


def watch_parent(
    parent_pid: int, on_orphaned: Callable[[], None], interval_s: float = WATCH_INTERVAL_S
) -> None:
    """Start a thread that calls `on_orphaned` once the parent has died."""

    def watch() -> None:
        while not is_orphan(parent_pid):
            time.sleep(interval_s)
        on_orphaned()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
