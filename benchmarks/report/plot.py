"""Draws the throughput of all sides as bars, as an SVG, without a plotting library."""

from html import escape
from typing import Any

BAR, GAP, WIDTH, TITLE, LINE = 22, 14, 640, 30, 18
NAME, NUMBER = 170, 160
COLOURS = ("#1f6feb", "#8c959f", "#bf8700", "#57606a", "#953800")


def draw(levels: list[dict[str, Any]], heading: tuple[str, ...] = ()) -> str:
    """Bars for each level's sides: tokens a second of the round in the middle.

    `heading` are lines above them: the processor and the method.
    """
    parts = [_text(8, 22 + LINE * index, line) for index, line in enumerate(heading)]
    y = TITLE + LINE * len(heading)
    for level in levels:
        sides = {name: figures["tokens_per_s_median"] for name, figures in level["sides"].items()}
        clients = level["clients"]
        parts.append(_text(8, y, f"{clients} client{'s' if clients > 1 else ''}", "bold"))
        y += 10
        for (name, rate), colour in zip(sides.items(), COLOURS, strict=False):
            length = (WIDTH - NAME - NUMBER) * rate / max(sides.values())
            parts.append(_text(8, y + BAR - 7, name))
            size = f'width="{length:.1f}" height="{BAR - 4}"'
            parts.append(f'<rect x="{NAME}" y="{y}" {size} fill="{colour}"/>')
            parts.append(_text(NAME + length + 6, y + BAR - 7, f"{rate:.1f} tokens/s"))
            y += BAR
        y += GAP + 12
    style = 'font-family="sans-serif" font-size="13"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" {style}>'
    background = f'<rect width="{WIDTH}" height="{y}" fill="white"/>'
    return "\n".join([head, background, *parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, weight: str = "normal") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-weight="{weight}">{escape(text)}</text>'
