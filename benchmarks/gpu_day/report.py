"""The report of a GPU day, as JSON and as Markdown that can be read without the machine."""

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu_day.plan import Part
from benchmarks.gpu_day.results import read_lines

Lines = list[dict[str, Any]]
ERROR_LINES = 12
# The fields of a figure.
SHOWN = ("name", "value", "unit", "least", "most", "is_met")


def write_report(
    folder: Path, parts: tuple[Part, ...], results: Path, facts: dict[str, Any]
) -> None:
    """Write report.json and report.md, each as a whole."""
    report = {"facts": facts, "parts": [describe(part, read_lines(results)) for part in parts]}
    for name, text in (
        ("report.json", json.dumps(report, indent=1)),
        ("report.md", markdown(report)),
    ):
        draft = folder / f".{name}"
        draft.write_text(text)
        draft.replace(folder / name)


def describe(part: Part, lines: Lines) -> dict[str, Any]:
    """Return what a part's lines say: its cases, their figures, and what stopped it."""
    own = [line for line in lines if line["part"] == part.name]
    cases: dict[str, dict[str, Any]] = {}
    for line in own:
        if line["event"] == "begin":
            cases[line["case"]] = {"status": "running", "values": [], "at": line["at"]}
        elif line["event"] == "value":
            cases[line["case"]]["values"].append({key: line[key] for key in SHOWN if key in line})
        elif line["event"] == "end":
            case = cases[line["case"]]
            case |= {"status": line["status"], "error": line["error"]}
            case["seconds"] = round(line["at"] - case.pop("at"), 1)
    errors = [line["error"] for line in own if line["event"] == "part"]
    return {
        "name": part.name, "title": part.title, "status": _status(own, cases, errors),
        "errors": errors, "cases": cases,
    }  # fmt: skip


def _status(lines: Lines, cases: dict[str, dict[str, Any]], errors: list[str]) -> str:
    if not lines:
        return "not run"
    if errors:
        return "failed"
    if lines[-1]["event"] != "done":
        return "running"
    return "ok" if all(case["status"] == "ok" for case in cases.values()) else "failed"


def is_ok(report: dict[str, Any]) -> bool:
    """Whether no part and no case failed."""
    return all(part["status"] == "ok" for part in report["parts"])


def markdown(report: dict[str, Any]) -> str:
    """Write the report for a person: a summary, the figures with bars, then each part."""
    lines = ["# GPU report", ""]
    lines += [f"* {name}: {value}" for name, value in report["facts"].items()]
    lines += ["", "| Part | Status | Cases |", "|---|---|---|"]
    for part in report["parts"]:
        counts: dict[str, int] = {}
        for case in part["cases"].values():
            counts[case["status"]] = counts.get(case["status"], 0) + 1
        counted = ", ".join(f"{count} {status}" for status, count in counts.items()) or "none"
        lines.append(f"| {part['title']} | {part['status']} | {counted} |")
    lines += _bars(report["parts"])
    for part in report["parts"]:
        lines += _part(part)
    return "\n".join(lines) + "\n"


def _bars(parts: list[dict[str, Any]]) -> list[str]:
    rows = [
        f"| {part['name']}: {name} | {_shown(value)} | {_bar(value)} |"
        for part in parts
        for name, case in part["cases"].items()
        for value in case["values"]
        if "is_met" in value
    ]
    head = ["", "## Goals", "", "| Case | Measured | Goal | |", "|---|---|---|---|"]
    return head + rows if rows else []


def _bar(value: dict[str, Any]) -> str:
    limits = [f"at least {value['least']}"] if value["least"] is not None else []
    limits += [f"at most {value['most']}"] if value["most"] is not None else []
    return f"{' and '.join(limits)} | {'met' if value['is_met'] else '**missed**'}"


def _part(part: dict[str, Any]) -> list[str]:
    lines = ["", f"## {part['title']}", ""]
    lines += [f"**{error}**" for error in part["errors"]]
    for name, case in part["cases"].items():
        lines += ["", f"### {name}: {case['status']} ({case.get('seconds', 0.0)} s)", ""]
        for value in case["values"]:
            if isinstance(value["value"], str) and "\n" in value["value"]:
                lines += [f"{value['name']}:", "", "```", value["value"].rstrip(), "```"]
            else:
                lines.append(f"* {_shown(value)}")
        if case.get("error"):
            error = case["error"].rstrip().splitlines()[-ERROR_LINES:]
            lines += ["", "```", *error, "```"]
    return lines


def _shown(value: dict[str, Any]) -> str:
    return f"{value['name']}: {value['value']} {value['unit']}".rstrip()
