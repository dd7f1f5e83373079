"""The vulnerabilities that we ship with until a last day: accepted-vulnerabilities.toml."""

import tomllib
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

ACCEPTED = Path(__file__).parent / "accepted-vulnerabilities.toml"
Accepted = Mapping[str, Mapping[str, Any]]


def read_accepted() -> Accepted:
    """Read the accepted vulnerabilities by name, each with a reason and a last day."""
    return tomllib.loads(ACCEPTED.read_text())


def is_accepted(names: Sequence[str], accepted: Accepted, today: date) -> bool:
    """Whether a vulnerability with these names is accepted today."""
    until = _last_day(names, accepted)
    return until is not None and until >= today


def expiry_note(names: Sequence[str], accepted: Accepted) -> str:
    """Return a note that a refused vulnerability was accepted before; empty if it never was."""
    until = _last_day(names, accepted)
    return f" (was accepted until {until})" if until is not None else ""


def _last_day(names: Sequence[str], accepted: Accepted) -> date | None:
    return next((accepted[name]["until"] for name in names if name in accepted), None)
