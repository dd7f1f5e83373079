"""The file that tells a restarted engine which adapters were registered."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from container.errors import one_line
from container.files import read_json, write_atomically

log = logging.getLogger(__name__)

Entry = tuple[str, str, bool]  # name, source, whether it is pinned


class AdapterRecord:
    """Owns the file. If it is lost, a restarted engine starts without adapters."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[Entry]:
        """Return the adapters that a previous engine recorded; none if the file is unreadable."""
        try:
            return [
                (str(name), str(source), bool(pin)) for name, source, pin in read_json(self._path)
            ]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError) as error:
            log.error(
                "adapters: %s cannot be read, so those registered before this start are lost: %s",
                self._path, one_line(error),
            )  # fmt: skip
            return []

    def write(self, entries: Iterable[Entry]) -> None:
        """Replace what is recorded."""
        try:
            write_atomically(self._path, json.dumps(list(entries)))
        except OSError as error:
            log.error(
                "adapters: %s cannot be written (%s); if the engine restarts, it will not know the "
                "last change",
                self._path, error.strerror,
            )  # fmt: skip
