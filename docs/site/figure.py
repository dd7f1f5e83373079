"""The plot in README, drawn from the table below it, so that the two cannot differ."""

import re
import textwrap
from pathlib import Path
from typing import Any

from benchmarks.report.plot import draw

ROOT = Path(__file__).parents[2]
LINE_CHARACTERS = 90
NUMBER = re.compile(r"^[\d.]+")


def figure() -> str:
    """Return README's plot as SVG: the rows whose first cell is a number of clients."""
    section = (ROOT / "README.md").read_text().split("## Figures\n")[1].split("\n## ")[0]
    rows = [_cells(line) for line in section.splitlines() if line.startswith("|")]
    sides, levels = rows[0][1:], [row for row in rows[2:] if row[0].isdigit()]
    return draw([_level(row, sides) for row in levels], _heading(section))


def _heading(section: str) -> tuple[str, ...]:
    """Return the first two sentences above the plot: processor, model and method."""
    paragraph = " ".join(section.strip().split("\n\n")[0].split())
    sentences = re.split(r"(?<=[.]) ", paragraph)[:2]
    return tuple(textwrap.wrap(" ".join(sentences), LINE_CHARACTERS))


def _level(row: list[str], sides: list[str]) -> dict[str, Any]:
    values = {
        side: {"tokens_per_s_median": float(match[0])}
        for side, cell in zip(sides, row[1:], strict=True)
        if (match := NUMBER.match(cell))
    }
    return {"clients": int(row[0]), "sides": values}


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
