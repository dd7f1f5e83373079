"""Bounds of a process with user code: its recursion, and what dies first when memory runs out."""

import contextlib
import logging
import sys
from pathlib import Path

log = logging.getLogger(__name__)

# Python keeps its frames on the heap: without a bound, endless recursion takes all memory.
MAX_RECURSION = 100_000
# Of all processes the kernel ends those with the highest score; the server's own have 0.
OOM_SCORE = 500


def bound_memory() -> None:
    """Bound the recursion limit that user code may set; be the first that the kernel ends."""
    with contextlib.suppress(OSError):  # not on macOS
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    set_limit = sys.setrecursionlimit

    def set_bounded(limit: int, /) -> None:
        if limit > MAX_RECURSION:
            log.warning(
                "handler worker: user code sets a recursion limit of %d; it is bounded to %d, "
                "since endless recursion would take all memory",
                limit, MAX_RECURSION,
            )  # fmt: skip
        set_limit(min(limit, MAX_RECURSION))

    sys.setrecursionlimit = set_bounded
