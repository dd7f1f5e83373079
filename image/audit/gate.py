"""Refuse an image with serious vulnerabilities.

Reads what Amazon Inspector's ScanSbom answered (`{"sbom": ...}` with CycloneDX 1.5 inside). Leaves
with 1 if a critical or high one is not accepted in image/audit/accepted-vulnerabilities.toml.
"""

import json
import sys
import tomllib
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

SERIOUS = ("critical", "high")
ACCEPTED = Path(__file__).parent / "accepted-vulnerabilities.toml"


def refusals(report: dict[str, Any], accepted: dict[str, Any], today: date) -> list[str]:
    """A line for each serious vulnerability that is not accepted, or no longer."""
    lines = []
    for found in report["sbom"].get("vulnerabilities", []):
        severities = {rating.get("severity") for rating in found.get("ratings", [])}
        worst = next((name for name in SERIOUS if name in severities), None)
        if worst is None:
            continue
        exception = accepted.get(found["id"])
        if exception and exception["until"] >= today:
            continue
        where = ", ".join(affected["ref"] for affected in found.get("affects", []))
        late = f" (was accepted until {exception['until']})" if exception else ""
        lines.append(f"{worst}: {found['id']} in {where}{late}")
    return lines


def main() -> int:
    """Judge standard input."""
    lines = refusals(
        json.load(sys.stdin), tomllib.loads(ACCEPTED.read_text()), datetime.now(UTC).date()
    )
    for line in lines:
        print(line, file=sys.stderr)
    print(f"{len(lines)} serious vulnerabilities", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
