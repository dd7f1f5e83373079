"""The measurements of a part, one line of JSON each, so that a part that is killed loses nothing.

`begin` and `end` enclose a case, `value` is one figure of it, `done` follows the last case.
"""

import json
import time
from pathlib import Path
from typing import Any


class Recorder:
    """Appends lines to a file; one process at a time writes."""

    def __init__(self, path: Path, part: str) -> None:
        self._path = path
        self._part = part
        self.case = ""

    def begin(self, case: str, limit_s: float) -> None:
        """Begin a case, with the most seconds that it may take."""
        self.case = case
        self.write("begin", limit_s=limit_s)

    def end(self, status: str, error: str = "") -> None:
        """End the case: `ok`, `failed` or `skipped`."""
        self.write("end", status=status, error=error)

    def value(
        self, name: str, value: object, unit: str = "", *, least: float | None = None,
        most: float | None = None,
    ) -> None:  # fmt: skip
        """Write a figure, and whether it is within its bar, if it has one."""
        bar: dict[str, object] = {}
        if isinstance(value, int | float) and (least is not None or most is not None):
            is_met = (least is None or value >= least) and (most is None or value <= most)
            bar = {"least": least, "most": most, "is_met": is_met}
        self.write("value", name=name, value=_plain(value), unit=unit, **bar)

    def done(self) -> None:
        """Write that no case follows."""
        self.write("done")

    def write(self, event: str, **fields: object) -> None:
        """Append one line."""
        line = {"event": event, "part": self._part, "case": self.case, "at": time.time()} | fields
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read all whole lines; a line that a killed process has begun is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def _plain(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    is_plain = value is None or isinstance(value, int | str | bool | list | dict)
    return value if is_plain else str(value)
