"""Stored responses: one file each in a folder that the frontends of this container share.

Bounded by their number and by the bytes of all: the oldest are dropped first. They end with the
container, and another instance of an endpoint does not know them.
"""

import contextlib
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from container.errors import NotFound

log = logging.getLogger(__name__)

ID = re.compile(r"resp_[0-9a-f]{8,64}")
MAX_BYTES = 2**26

T = TypeVar("T")


class StoredResponse(msgspec.Struct, frozen=True):
    """The body of a response, and the items of its conversation, the output included."""

    body: dict[str, object]
    items: list[dict[str, object]]


_decoder = msgspec.json.Decoder(StoredResponse)


class ResponseStore:
    """Keeps at most `max_responses`; `folder` None or a number of 0: none."""

    def __init__(self, folder: Path | None, max_responses: int, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder if max_responses else None
        self._max_responses = max_responses
        self._max_bytes = max_bytes

    @property
    def is_on(self) -> bool:
        """Whether anything is stored."""
        return self._folder is not None

    def save(self, response_id: str, stored: StoredResponse) -> None:
        """Store a response, unless it is larger than all that may be stored."""
        raw = msgspec.json.encode(stored)
        if self._folder is None or len(raw) > self._max_bytes:
            return
        try:
            self._write(self._folder, response_id, raw)
        except OSError as error:  # the answer is there, so the request does not fail
            log.warning(
                "responses: one was not stored, so it cannot be continued or asked for again: %s",
                error,
            )

    def find(self, response_id: str, field: str) -> StoredResponse:
        """Return a stored response. Raises NotFound, which names `field`."""
        return self._attempt(response_id, field, lambda path: _decoder.decode(path.read_bytes()))

    def delete(self, response_id: str, field: str) -> None:
        """Drop a response. Raises NotFound, which names `field`."""
        self._attempt(response_id, field, Path.unlink)

    def _attempt(self, response_id: str, field: str, act: Callable[[Path], T]) -> T:
        if self._folder is not None and ID.fullmatch(response_id):
            with contextlib.suppress(FileNotFoundError):
                return act(self._folder / response_id)
        raise NotFound(
            f"response {response_id[:80]!r} is not stored: it was not to be stored, has been "
            "dropped or deleted, or is of another instance",
            field=field,
        )

    def _write(self, folder: Path, response_id: str, raw: bytes) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        unfinished = folder / f".{response_id}"
        unfinished.write_bytes(raw)
        unfinished.replace(folder / response_id)  # at once, so that no frontend reads a part
        self._drop_oldest(folder)

    def _drop_oldest(self, folder: Path) -> None:
        files: list[tuple[float, int, str]] = []
        for entry in os.scandir(folder):
            if entry.name.startswith("."):  # another frontend writes it now
                continue
            with contextlib.suppress(FileNotFoundError):  # another frontend has dropped it
                status = entry.stat()
                files.append((status.st_mtime, status.st_size, entry.path))
        files.sort(reverse=True)
        total = 0
        for count, (_, size, path) in enumerate(files, start=1):
            total += size
            if count > self._max_responses or total > self._max_bytes:
                Path(path).unlink(missing_ok=True)
