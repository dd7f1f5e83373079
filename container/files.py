"""Folders that a client names, JSON files of models, and small files that must survive a crash."""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def find_folder(name: str) -> Path | None:
    """Return the folder of this name, `~` expanded; None for anything that is no readable folder.

    Every name is allowed: one that is too long, has a zero byte or an unknown user names no folder.
    """
    if not name:
        return None
    try:
        folder = Path(name).expanduser()
        with os.scandir(folder):
            return folder
    except (OSError, RuntimeError, ValueError):
        return None


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises OSError, or ValueError for what is no JSON or nested too deeply."""
    try:
        return json.loads(path.read_text())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old text or the new one, never a part.

    Raises OSError, with the old file unchanged, when the disk is full.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
