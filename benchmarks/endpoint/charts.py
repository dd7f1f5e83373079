"""Charts as SVG in the colours of the page, without a plotting library."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 36, 46, 46
LEGEND = 30  # its vertical position
COLOURS = ("#1f6feb", "#bf8700", "#cf222e", "#1a7f37", "#8250df", "#57606a")
DOTS = 1500  # more than so many points look the same


@dataclass(frozen=True, slots=True)
class Series:
    """A line or cloud of points with a name."""

    name: str
    points: Sequence[tuple[float, float]]
    is_dashed: bool = False


def lines(title: str, series: Sequence[Series], labels: Sequence[str], unit: str) -> str:
    """Draw lines over named positions on the horizontal axis."""
    plane = _Plane(title, unit, max(1, len(labels) - 1), _top(series))
    marks = [plane.label(index, label) for index, label in enumerate(labels)]
    body = [_line(plane, line, index) for index, line in enumerate(series)]
    return plane.svg([*marks, *body, *_legend(series)])


def dots(title: str, series: Sequence[Series], unit: str, axis: str) -> str:
    """Draw points over a numeric axis that begins at 0."""
    right = max((x for line in series for x, _ in line.points), default=1) or 1
    plane = _Plane(title, unit, right, _top(series))
    marks = [plane.label(right * step / 4, f"{right * step / 4:.3g}") for step in range(5)]
    body = []
    for index, line in enumerate(series):
        step = max(1, len(line.points) // DOTS)
        colour = COLOURS[index % len(COLOURS)]
        body += [
            f'<circle cx="{plane.x(x):.1f}" cy="{plane.y(y):.1f}" r="2" fill="{colour}" '
            'fill-opacity="0.5"/>'
            for x, y in line.points[::step]
        ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    return plane.svg([*marks, _text(middle, HEIGHT - 8, axis, "middle"), *body, *_legend(series)])


def curves(title: str, series: Sequence[Series], unit: str) -> str:
    """Draw the share of values (0 to 1) that are at most so large."""
    right = max((x for line in series for x, _ in line.points), default=1) or 1
    plane = _Plane(title, "share", right, 1.0)
    marks = [plane.label(right * step / 4, f"{right * step / 4:.3g}") for step in range(5)]
    body = [_line(plane, line, index, marks=False) for index, line in enumerate(series)]
    middle = (LEFT + WIDTH - RIGHT) / 2
    return plane.svg([*marks, _text(middle, HEIGHT - 8, unit, "middle"), *body, *_legend(series)])


def shares(values: Sequence[float]) -> list[tuple[float, float]]:
    """Return the points of the curve for some values."""
    ordered = sorted(values)
    step = max(1, len(ordered) // 200)
    points = [(value, (rank + 1) / len(ordered)) for rank, value in enumerate(ordered)]
    return [*points[::step], *points[-1:]]


class _Plane:
    """Maps values to positions, and draws the axes; both begin at 0."""

    def __init__(self, title: str, unit: str, right: float, top: float) -> None:
        self._title, self._unit = title, unit
        self._right, self._top = right, _round_up(top)

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self._right

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(value / self._top, 1.0)

    def label(self, value: float, text: str) -> str:
        return _text(self.x(value), HEIGHT - BOTTOM + 16, text, "middle")

    def svg(self, body: Sequence[str]) -> str:
        grid = []
        for step in range(5):
            value = self._top * step / 4
            y = self.y(value)
            grid.append(
                f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" class="grid"/>'
            )
            grid.append(_text(LEFT - 6, y + 4, f"{value:.4g}", "end"))
        name = escape(f"{self._title}, {self._unit}")
        head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">'
        return "".join([head, _text(LEFT, 16, name, "start", "title"), *grid, *body, "</svg>"])


def _line(plane: _Plane, series: Series, index: int, *, marks: bool = True) -> str:
    colour = COLOURS[index % len(COLOURS)]
    points = " ".join(f"{plane.x(x):.1f},{plane.y(y):.1f}" for x, y in series.points)
    dash = ' stroke-dasharray="5 4"' if series.is_dashed else ""
    line = f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
    circles = "".join(
        f'<circle cx="{plane.x(x):.1f}" cy="{plane.y(y):.1f}" r="3" fill="{colour}"/>'
        for x, y in series.points
    )
    return line + (circles if marks else "")


def _legend(series: Sequence[Series]) -> list[str]:
    parts, x = [], float(LEFT)
    for index, line in enumerate(series):
        colour = COLOURS[index % len(COLOURS)]
        parts.append(f'<rect x="{x:.0f}" y="{LEGEND - 6}" width="10" height="4" fill="{colour}"/>')
        parts.append(_text(x + 14, LEGEND, line.name, "start"))
        x += 26 + 6.4 * len(line.name)
    return parts


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{name}>{escape(text)}</text>'


def _top(series: Sequence[Series]) -> float:
    return max((y for line in series for _, y in line.points), default=1.0) or 1.0


def _round_up(value: float) -> float:
    """Return the next number of the kind 1, 2, 4 or 8 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 8, 10) if step * power >= value * 0.9999)
