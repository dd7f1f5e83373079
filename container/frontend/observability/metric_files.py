"""Room for the files in which each HTTP process counts, so that the server's numbers can be added.

prometheus_client maps these files into memory. A write to a mapped file on a full disk is a signal
that ends the process, and so the one that takes its place; so the room is reserved before.
"""

import contextlib
import logging
import os
from pathlib import Path

from prometheus_client import values

log = logging.getLogger(__name__)

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
METRIC_TYPES = (
    "counter",
    "histogram",
)  # of the metrics here; the library names its files after them
RESERVED_BYTES = 1 << 18


def reserve_metric_files() -> None:
    """Reserve the room for this process's files; without room, count in memory instead.

    Call it before you create the first metric.
    """
    folder = os.environ.get(VARIABLE)
    if folder is None:
        return
    try:
        for kind in METRIC_TYPES:
            _reserve(Path(folder) / f"{kind}_{os.getpid()}.db")
    except OSError as error:
        del os.environ[VARIABLE]
        values.ValueClass = values.MutexValue
        log.error(
            "metrics: there is no room for files in %s (%s); until this process restarts, its "
            "/metrics has its own numbers only",
            folder, error.strerror,
        )  # fmt: skip


def _reserve(path: Path) -> None:
    """Create a file whose bytes have their place on the disk. Raises OSError."""
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        os.posix_fallocate(handle, 0, RESERVED_BYTES)
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    finally:
        os.close(handle)
