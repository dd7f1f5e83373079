"""The table of faults, in Markdown."""

from collections.abc import Sequence

from benchmarks.chaos.trial import Row

HEADS = (
    "Fault", "Streams", "Plain", "/ping", "Detect (s)", "Serve again (s)", "Lost", "Duplicated",
    "Leaked", "Processes left",
)  # fmt: skip


def write(rows: Sequence[Row]) -> str:
    """Return the table."""
    lines = [HEADS, ("---",) * len(HEADS), *map(cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(row: Row) -> tuple[str, ...]:
    """Return the cells of a row."""
    return (
        row.fault, row.streams, row.plain, row.ping, _seconds(row.detect_s),
        _seconds(row.again_s), str(row.lost), str(row.duplicated), row.leaked, str(row.left),
    )  # fmt: skip


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f}"
