"""Fallbacks: the reasons why a model is served more slowly than this machine could serve it.

A form that this processor or this kind of model never has is none; a form that failed, that its
check refused, or that an option took away is one.
"""

import logging
from collections.abc import Iterable

from container.errors import ConfigError

log = logging.getLogger(__name__)

# The remedy where a check refused a form.
TRY_ANOTHER_DTYPE = "another DTYPE may pass; please report the model and this line"


class Fallbacks:
    """Collects the fallbacks of one start, each once, and logs a warning for each."""

    def __init__(self, owner: str = "") -> None:
        """`owner` begins each line, for a process whose lines are shown beside another's."""
        self._prefix = f"{owner}: " if owner else ""
        self._lines: dict[str, None] = {}

    def add(self, component: str, reason: str, remedy: str) -> None:
        """Add and log a fallback: the slower component, the reason, and the user's remedy."""
        line = f"{self._prefix}{component}: {reason} (slower); {remedy}"
        if line not in self._lines:
            self._lines[line] = None
            log.warning("slow path: %s", line)

    def extend(self, lines: Iterable[str]) -> None:
        """Add lines that other fallbacks of this start collected and logged."""
        self._lines |= dict.fromkeys(lines)

    @property
    def lines(self) -> tuple[str, ...]:
        """All fallbacks in order; empty on the fast path."""
        return tuple(self._lines)

    def refuse(self) -> None:
        """Raise ConfigError with all fallbacks if there are any."""
        if self._lines:
            raise ConfigError(
                [
                    f"REQUIRE_FAST_PATH is set, but this is a slow path: {line}"
                    for line in self.lines
                ]
            )
