"""Fallbacks: the reasons why a model is served more slowly than this machine could serve it.

One rule decides. A fallback is a slower form, or one with more memory, that another setting,
machine, package or checkpoint would avoid: a form failed, its check refused it, it could not be
checked, or a setting for something else took it away (KV_CACHE_DTYPE, which saves memory). None is
what this processor or this kind of model never has, and what a setting asks for by its meaning
(CUDA_GRAPHS=0). What is no slower but was checked less closely is `not_proved`.
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
        self._not_proved: dict[str, None] = {}

    def add(self, component: str, reason: str, remedy: str) -> None:
        """Add and log a fallback: the slower component, the reason, and the user's remedy."""
        line = f"{self._prefix}{component}: {reason} (slower); {remedy}"
        if line not in self._lines:
            self._lines[line] = None
            log.warning("slow path: %s", line)

    def leave_out(self, part: str) -> None:
        """Note and log a part that the checks at start leave out, or check coarsely."""
        if part not in self._not_proved:
            self._not_proved[part] = None
            log.warning("checks: not proved: %s%s", self._prefix, part)

    def extend(self, lines: Iterable[str]) -> None:
        """Add lines that other fallbacks of this start collected and logged."""
        self._lines |= dict.fromkeys(lines)

    @property
    def lines(self) -> tuple[str, ...]:
        """All fallbacks in order; empty on the fast path."""
        return tuple(self._lines)

    @property
    def not_proved(self) -> tuple[str, ...]:
        """The parts that the checks left out, in order."""
        return tuple(f"{self._prefix}{part}" for part in self._not_proved)

    def refuse(self) -> None:
        """Raise ConfigError with all fallbacks if there are any."""
        if self._lines:
            raise ConfigError(
                [
                    f"REQUIRE_FAST_PATH is set, but this is a slow path: {line}"
                    for line in self.lines
                ]
            )
