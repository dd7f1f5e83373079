"""Folders that a client names, files of models, and small files that must survive a crash."""

import contextlib
import itertools
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The most that a text file of a model may have.
MAX_TEXT_BYTES = 256 * 2**20
# Files of models that are read whole.
TEXT_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".tiktoken")
# Their names, beside which there may be data of any size.
TEXT_NAMES = (
    "added_tokens", "chat_template", "config", "generation_config", "merges", "model.", "modules",
    "preprocessor", "processor", "pytorch_model.", "sentence_", "sentencepiece", "special_tokens",
    "spiece", "tekken", "tokenizer", "video_preprocessor", "vocab.", "vocab-",
)  # fmt: skip
WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin")
# The problem of a path that can be read without end.
SPECIAL = "is a pipe, a socket or a device, not a file"


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


def read_text(path: Path) -> str:
    """Read a text file of a model. Raises OSError, also for what is no file or too large."""
    path.stat()  # raises FileNotFoundError for one that is missing
    if (problem := _problem(path, MAX_TEXT_BYTES)) is not None:
        raise OSError(f"it {problem}")
    return path.read_text()


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises OSError, or ValueError for what is no JSON or nested too deeply."""
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def find_unreadable(folder: Path) -> str | None:
    """Name a file of a model's folder that cannot be read, or would be read without end, and why.

    Only files of the kinds that models consist of count. Below the top, where users' data may be,
    only those that `find_special` names do.
    """
    for path in _model_files(folder):
        is_text = path.name.startswith(TEXT_NAMES) and path.suffix in TEXT_SUFFIXES
        problem = _problem(path, MAX_TEXT_BYTES if is_text else None)
        if problem is not None and (path.parent == folder or problem == SPECIAL):
            return f"{path} {problem}"
    return None


def find_special(folder: Path) -> str | None:
    """Name a pipe, socket or device with the name of a model's file; user code apart.

    All other files of a folder that user code reads are that code's own matter.
    """
    paths = (path for path in _model_files(folder) if _problem(path) == SPECIAL)
    return next((f"{path} {SPECIAL}" for path in paths), None)


def file_sizes(folder: Path, limit: int | None = None) -> Iterator[tuple[str, int]]:
    """Yield the names and sizes of the files in a folder, among its first `limit` names.

    Those that this server's user may not look at are left out, and links to nowhere.
    """
    paths = ((parent, name) for parent, _, names in os.walk(folder) for name in names)
    for parent, name in itertools.islice(paths, limit):
        with contextlib.suppress(OSError):
            status = os.stat(os.path.join(parent, name))
            if stat.S_ISREG(status.st_mode):
                yield name, status.st_size


def _model_files(folder: Path) -> Iterator[Path]:
    """Yield what has the name of a model's file, at the top even if it is a folder.

    Folders with the ending .bin are left out: some trainers write one beside the weights.
    """
    for parent, folders, names in os.walk(folder):
        if Path(parent) == folder:
            folders[:] = [name for name in folders if name != "code"]
            names = [*names, *(name for name in folders if not name.endswith(".bin"))]
        for name in names:
            if name.endswith(TEXT_SUFFIXES + WEIGHT_SUFFIXES):
                yield Path(parent, name)


def _problem(path: Path, max_bytes: int | None = None) -> str | None:
    """Say why a path cannot be read as a file of at most this size; None if it can."""
    try:
        status = path.stat()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if stat.S_ISDIR(status.st_mode):
        return "is a folder, not a file"
    if not stat.S_ISREG(status.st_mode):
        return SPECIAL
    if not os.access(path, os.R_OK):
        return "may not be read by this server's user"
    if max_bytes is not None and status.st_size > max_bytes:
        return f"has {status.st_size} bytes; such a file has at most {max_bytes}"
    return None


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
