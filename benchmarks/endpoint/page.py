"""The report of a run, and the comparison of two, each as one HTML page without other files.

The page holds the figures as JSON too, so that a page can be compared like a JSON file.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.endpoint import charts
from benchmarks.endpoint.charts import Series

Result = dict[str, Any]
PERCENTS = ("p50", "p90", "p99")
TIMES = {
    "first_token_ms": "time to first token",
    "between_tokens_ms": "between tokens",
    "whole_ms": "whole answer",
}
Figure = Callable[[dict[str, Any]], float | None]
DATA = re.compile(r'<script type="application/json" id="result">(.*?)</script>', re.DOTALL)
# Differences below this are not coloured; runs of the same server differ by as much.
NOISE = 0.03
STYLE = """
:root{color-scheme:light dark;--line:#8884;--good:#1a7f37;--bad:#cf222e}
body{font:15px/1.45 system-ui,sans-serif;max-width:1120px;margin:2em auto;padding:0 1em}
table{font-size:14px;border-collapse:collapse;margin:1em 0;display:block;overflow-x:auto}
td,th{padding:.25em .6em;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(340px,1fr));gap:1em}
svg{width:100%;border:1px solid var(--line);border-radius:6px}
svg text{font:11px system-ui,sans-serif;fill:currentColor} svg .title{font-size:13px}
.grid{stroke:#8884} .good{color:var(--good)} .bad{color:var(--bad)} dt{float:left;min-width:9em}
"""


def report(result: Result) -> str:
    """Return the page of one run."""
    levels = result["levels"]
    parts = [
        f"<h1>{escape(result['target'])}</h1>",
        _facts(result),
        "<h2>Levels</h2><p>Times are p50 / p90 / p99.</p>",
        _levels_table(result),
        '<div class="charts">',
        *_level_charts([("", result)]),
        *_sample_charts(levels),
        "</div>",
        *_errors(levels),
    ]
    return render(f"Benchmark of {result['target']}", parts, result)


def comparison(before: Result, after: Result) -> str:
    """Return the page that compares two runs, level by level where their names agree."""
    named = [(_name(before, "before"), before), (_name(after, "after"), after)]
    pairs = list(_pairs(before, after))
    parts = [
        "<h1>Comparison</h1>",
        *(f"<h2>{escape(name)}</h2>{_facts(result)}" for name, result in named),
        *_warnings(before, after, pairs),
    ]
    for left, right in pairs:
        parts += [f"<h2>{escape(left['name'])}</h2>", _pair_table(named, left, right)]
        parts += ['<div class="charts">', *_pair_charts(named, left, right), "</div>"]
    parts += ['<div class="charts">', *_level_charts(named), "</div>"]
    return render("Comparison", parts, None)


def read_result(path: Path) -> Result:
    """Read a JSON file or a page. Raises ValueError."""
    text = path.read_text()
    match = DATA.search(text)
    try:
        result: Result = json.loads(match[1] if match else text)
    except ValueError:
        raise ValueError(f"{path} is neither a report's JSON nor its page") from None
    if not isinstance(result, dict) or "levels" not in result:
        raise ValueError(f"{path} has no levels of a report")
    return result


def render(title: str, parts: Sequence[str], result: Result | None) -> str:
    """Return the page; the result goes along in it as JSON."""
    data = ""
    if result is not None:
        text = json.dumps(result).replace("<", "\\u003c")  # servers wrote the errors in it
        data = f'<script type="application/json" id="result">{text}</script>'
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
    )
    return "\n".join([head, *parts, data, "</body></html>\n"])


def _facts(result: Result) -> str:
    facts = {
        "API": result["api"],
        "model": result["model"] or "not named",
        "prompts": result["workload"],
        "started": result["started"],
        "goal": ", ".join(f"{k} {v:g} ms" for k, v in (result.get("goal") or {}).items()) or "none",
        "price": f"${result['price']:g} an hour" if result.get("price") else "not given",
    }
    rows = [f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items()]
    return f"<dl>{''.join(rows)}</dl>"


def _levels_table(result: Result) -> str:
    heads = ["level", "requests", "failed", "requests/s", "tokens/s"]
    heads += [f"{name}, ms" for name in TIMES.values()]
    has_goal, has_cost = bool(result.get("goal")), bool(result.get("price"))
    heads += ["goodput, requests/s"] * has_goal + ["tokens/s per $/h", "$ per million"] * has_cost
    rows = []
    for level in result["levels"]:
        cells = [level["name"], level["requests"], level["failed"]]
        cells += [f"{level['requests_per_s']:.2f}", f"{level['output_tokens_per_s']:.1f}"]
        cells += [_three(level[name]) for name in TIMES]
        if has_goal:
            good = level["goodput"]
            cells.append(f"{good['requests_per_s']:.2f} ({100 * good['share']:.0f} %)")
        if has_cost:
            cost = level["cost"]
            cells += [cost["tokens_per_s_per_dollar_an_hour"], cost["dollars_per_million_tokens"]]
        rows.append(cells)
    return _table(heads, rows)


def _three(spread: dict[str, float]) -> str:
    return " / ".join(f"{spread[p]:.1f}" for p in PERCENTS) if spread["count"] else "none"


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    return str(value) if isinstance(value, _Html) else escape(str(value))


class _Html(str):
    """A text that is markup already."""


def _level_charts(named: Sequence[tuple[str, Result]]) -> Iterator[str]:
    """Lines over the levels; those of a second run are dashed."""
    labels = [level["name"] for level in named[0][1]["levels"]]
    rates = [
        Series(f"{name} tokens/s".strip(), _over(labels, result, _rate), bool(index))
        for index, (name, result) in enumerate(named)
    ]
    yield charts.lines("Throughput", rates, labels, "tokens/s")
    if all(result.get("goal") for _, result in named):
        kept = [
            Series(f"{name} goodput".strip(), _over(labels, result, _goodput), bool(index))
            for index, (name, result) in enumerate(named)
        ]
        yield charts.lines("Requests a second that keep the goal", kept, labels, "requests/s")
    for key, title in TIMES.items():
        series = [
            Series(f"{name} {p}".strip(), _over(labels, result, _time(key, p)), bool(index))
            for index, (name, result) in enumerate(named)
            for p in PERCENTS
        ]
        yield charts.lines(title.capitalize(), series, labels, "ms")


def _over(labels: list[str], result: Result, figure: Figure) -> list[tuple[float, float]]:
    values = {level["name"]: figure(level) for level in result["levels"]}
    points = [(index, values.get(label)) for index, label in enumerate(labels)]
    return [(float(index), value) for index, value in points if value is not None]


def _sample_charts(levels: Sequence[dict[str, Any]]) -> Iterator[str]:
    for key in ("first_token_ms", "per_token_ms"):
        title = TIMES.get(key, "mean time per token")
        series = [Series(one["name"], charts.shares(one["samples"][key])) for one in levels]
        yield charts.curves(f"{title.capitalize()}: share of requests", series, "ms")
    series = [
        Series(
            level["name"],
            list(zip(level["samples"]["due_s"], level["samples"]["first_token_ms"], strict=True)),
        )
        for level in levels
    ]
    yield charts.dots("Time to first token during the run", series, "ms", "seconds")


def _pair_charts(
    named: Sequence[tuple[str, Result]], left: dict[str, Any], right: dict[str, Any]
) -> Iterator[str]:
    for key in ("first_token_ms", "per_token_ms"):
        title = TIMES.get(key, "mean time per token")
        series = [
            Series(name, charts.shares(level["samples"][key]), bool(index))
            for index, ((name, _), level) in enumerate(zip(named, (left, right), strict=True))
        ]
        yield charts.curves(f"{title.capitalize()}: share of requests", series, "ms")


def _pair_table(
    named: Sequence[tuple[str, Result]], left: dict[str, Any], right: dict[str, Any]
) -> str:
    heads = ["", *(name for name, _ in named), "after / before"]
    rows = []
    for name, figure, more_is_better in _figures():
        pair = figure(left), figure(right)
        if None not in pair:
            rows.append([name, *(f"{value:.5g}" for value in pair), _ratio(*pair, more_is_better)])
    return _table(heads, rows)


def _figures() -> Iterator[tuple[str, Figure, bool]]:
    """Yield the rows of a comparison: name, figure, and whether more of it is better."""
    yield "tokens/s", _rate, True
    yield "requests/s", lambda level: level["requests_per_s"], True
    yield "goodput, requests/s", _goodput, True
    yield "failed", lambda level: level["failed"], False
    for key, title in TIMES.items():
        for p in PERCENTS:
            yield f"{title}, ms, {p}", _time(key, p), False
    yield "$ per million tokens", _cost, False


def _ratio(before: float, after: float, more_is_better: bool) -> str:
    if not before:
        return "" if not after else _Html('<span class="bad">new</span>')
    ratio = after / before
    is_better = (ratio > 1) == more_is_better
    kind = "" if abs(ratio - 1) < NOISE else "good" if is_better else "bad"
    return _Html(f'<span class="{kind}">{ratio:.3f}</span>')


def _rate(level: dict[str, Any]) -> float | None:
    return float(level["output_tokens_per_s"])


def _goodput(level: dict[str, Any]) -> float | None:
    return (level.get("goodput") or {}).get("requests_per_s")


def _cost(level: dict[str, Any]) -> float | None:
    return (level.get("cost") or {}).get("dollars_per_million_tokens")


def _time(key: str, percent: str) -> Figure:
    return lambda level: level[key].get(percent)


def _pairs(before: Result, after: Result) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    by_name = {level["name"]: level for level in after["levels"]}
    for level in before["levels"]:
        if level["name"] in by_name:
            yield level, by_name[level["name"]]


def _warnings(before: Result, after: Result, pairs: Sequence[Any]) -> Iterator[str]:
    """Say what makes the two runs hard to compare."""
    for name in ("workload", "api", "goal"):
        if before.get(name) != after.get(name):
            yield f'<p class="bad">The two runs differ in their {name}.</p>'
    if len(pairs) < max(len(before["levels"]), len(after["levels"])):
        yield '<p class="bad">Levels that only one run has are left out.</p>'


def _name(result: Result, fallback: str) -> str:
    return str(result.get("label") or fallback)


def _errors(levels: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        [level["name"], count, error]
        for level in levels
        for error, count in level["errors"].items()
    ]
    return ["<h2>Errors</h2>", _table(["level", "requests", "error"], rows)] if rows else []
