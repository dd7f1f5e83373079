"""Refuse an image with serious vulnerabilities.

Reads the response of Amazon Inspector's ScanSbom (`{"sbom": ...}` with CycloneDX 1.5 inside). Exits
with 1 if a critical or high one is not accepted in image/audit/accepted-vulnerabilities.toml.
"""

import json
import sys
from datetime import UTC, date, datetime
from typing import Any

from image.audit.acceptance import Accepted, expiry_note, is_accepted, read_accepted

SERIOUS = ("critical", "high")


def refusals(report: dict[str, Any], accepted: Accepted, today: date) -> list[str]:
    """Return a line for each serious vulnerability that is not accepted, or no longer."""
    lines = []
    for vulnerability in report["sbom"].get("vulnerabilities", []):
        severities = {rating.get("severity") for rating in vulnerability.get("ratings", [])}
        worst = next((name for name in SERIOUS if name in severities), None)
        names = [vulnerability["id"]]
        if worst is None or is_accepted(names, accepted, today):
            continue
        where = ", ".join(affected["ref"] for affected in vulnerability.get("affects", []))
        lines.append(f"{worst}: {names[0]} in {where}{expiry_note(names, accepted)}")
    return lines


def main() -> int:
    """Judge standard input."""
    lines = refusals(json.load(sys.stdin), read_accepted(), datetime.now(UTC).date())
    for line in lines:
        print(line, file=sys.stderr)
    print(f"{len(lines)} serious vulnerabilities", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
