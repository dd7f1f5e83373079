"""A full disk: the server's temporary folder is a small tmpfs, which a file fills. Needs root."""

import contextlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.chaos.trial import Effect, Fault
from tests.support.servers import Server

SIZE = "64m"


class NoMount(Exception):
    """This process may not mount a tmpfs."""


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a small tmpfs for the length of a block. Raises NoMount."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        raise NoMount(f"a tmpfs could not be mounted on {folder}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def disk_fault(folder: Path) -> Fault:
    """Return the fault of a folder without space."""

    def inject(_: Server) -> Effect:
        filler = folder / "filler"
        fill(filler)
        return Effect(filler.unlink)

    return Fault("temporary folder full", inject)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(65_536)):
            pass
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        while file.write(b"0"):
            pass
