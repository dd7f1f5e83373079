"""Refuse locked packages with known vulnerabilities, as PyPI lists them for each release.

Reads image/locks/*.lock. Exits with 1 if a release has a vulnerability that is not accepted in
image/audit/accepted-vulnerabilities.toml; with 0 if none has. Where the index cannot be asked, the
first failure ends the audit, and a line says which packages were not audited: that is no error,
unless AUDIT=required. PACKAGE_INDEX names another index with PyPI's JSON API.
"""

import json
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

from image.audit.acceptance import Accepted, expiry_note, is_accepted, read_accepted

LOCKS = Path(__file__).parents[1] / "locks"
INDEX = "https://pypi.org/pypi"
TIMEOUT_S = 20
NOT_REQUIRED = "this is no error unless AUDIT=required"


class Release(NamedTuple):
    """A locked package."""

    name: str
    version: str


class NotAudited(Exception):
    """The index could not be asked about a release."""


def locked(folder: Path) -> list[Release]:
    """Return every release in the locks of a folder, without local versions (`+cpu`)."""
    releases = set()
    for path in sorted(folder.glob("*.lock")):
        for match in re.finditer(r"^([\w.-]+)==([\w.!]+)", path.read_text(), re.M):
            releases.add(Release(match[1], match[2]))
    return sorted(releases)


def vulnerabilities(index: str, release: Release) -> list[dict[str, Any]]:
    """Return what the index knows of a release. Raises NotAudited."""
    url = f"{index}/{release.name}/{release.version}/json"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            known: list[dict[str, Any]] = json.load(response)["vulnerabilities"]
    except (OSError, ValueError, KeyError) as error:
        raise NotAudited(f"{url}: {type(error).__name__}: {error}") from error
    return [each for each in known if not each.get("withdrawn")]


def refusals(
    release: Release, known: Sequence[dict[str, Any]], accepted: Accepted, today: date
) -> Iterator[str]:
    """Yield a line for each vulnerability that is not accepted, or no longer."""
    for each in known:
        names = [each["id"], *each.get("aliases", [])]
        if is_accepted(names, accepted, today):
            continue
        fixed = ", ".join(each.get("fixed_in") or ["no version"])
        note = expiry_note(names, accepted)
        yield f"{release.name} {release.version}: {', '.join(names)}; fixed in {fixed}{note}"


def main() -> int:
    """Ask about each release in turn."""
    index = os.environ.get("PACKAGE_INDEX", INDEX)
    accepted = read_accepted()
    releases, lines = locked(LOCKS), []
    for number, release in enumerate(releases):
        try:
            known = vulnerabilities(index, release)
        except NotAudited as error:
            return _report_not_audited(error, len(releases) - number, len(releases), lines)
        lines += refusals(release, known, accepted, datetime.now(UTC).date())
    return _report(lines, f"{len(releases)} locked packages audited")


def _report_not_audited(error: NotAudited, num_left: int, num_all: int, lines: list[str]) -> int:
    is_required = os.environ.get("AUDIT") == "required"
    hint = "AUDIT=required, so this ends the build" if is_required else NOT_REQUIRED
    code = _report(lines, f"NOT AUDITED: {num_left} of {num_all} locked packages ({error}); {hint}")
    return code or int(is_required)


def _report(lines: list[str], last: str) -> int:
    for line in (*lines, f"{len(lines)} known vulnerabilities; {last}"):
        print(line, file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
