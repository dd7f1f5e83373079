"""The page of log events, from the calls of `log.warning` and `log.error` in the source."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

CONTAINER = Path(__file__).parents[2] / "container"
LEVELS = {"info": "info", "warning": "warning", "error": "error", "exception": "error"}
HEAD = """\
# Log events

This page is made from the code when the site is built. The log goes to stderr: one JSON object a
line with `timestamp`, `level`, `logger`, `message`, for a request of SageMaker's `inference_id`,
and with an exception `exception`; at a terminal, or with `JSON_OUTPUT=false`, short lines.
`LOG_LEVEL` is the least level that is logged. A message names the component, the event, its cause
and what follows; "…" stands for a name, a number or a reason. [Operations](../operations.md) has
the failures behind them.
"""


def events_page() -> str:
    """Describe every message of the log, the gravest first."""
    events = sorted(set(_events()), key=lambda event: (event[1], event[2]))
    lines = [HEAD]
    for level in ("error", "warning", "info"):
        lines += [f"## {level.capitalize()}", "", "| Message | Logger |", "|---|---|"]
        lines += [f"| {text} | `{logger}` |" for kind, logger, text in events if kind == level]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _events() -> Iterator[tuple[str, str, str]]:
    """Yield level, logger and message of each call."""
    for path in sorted(CONTAINER.rglob("*.py")):
        module = path.relative_to(CONTAINER.parent).with_suffix("")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and (event := _event(node)) is not None:
                yield event[0], ".".join(module.parts), event[1]


def _event(call: ast.Call) -> tuple[str, str] | None:
    function = call.func
    if not isinstance(function, ast.Attribute) or not isinstance(function.value, ast.Name):
        return None
    if function.value.id != "log" or function.attr not in LEVELS or not call.args:
        return None
    text = _text(call.args[0])
    if not re.search(r"[a-z]{3}", text):  # nothing but places: another function has the words
        return None
    return LEVELS[function.attr], text.replace("|", "\\|").replace("<", "&lt;")


def _text(node: ast.expr) -> str:
    """Return a format string with its places as an ellipsis."""
    if isinstance(node, ast.Constant):
        return re.sub(r"%[-\d.]*[a-z]", "…", str(node.value)).replace("%%", "%")
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    return "…"
