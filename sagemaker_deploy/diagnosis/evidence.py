"""The evidence about an endpoint: reasons that AWS gives, log lines, answers to /ping. Pure."""

import re
from collections import Counter
from dataclasses import dataclass

# An access log line of any server, and the short form of those that log the status first.
PING = re.compile(r'"?GET /+ping(?: HTTP/[\d.]+)?"?,? (?:status[=: ]+)?(\d{3})\b')


@dataclass(frozen=True, slots=True)
class Evidence:
    """Facts about one endpoint. `log` is oldest first; `has_log` is None if it may not be read."""

    name: str
    status: str = ""
    reasons: tuple[str, ...] = ()
    log: tuple[str, ...] = ()
    has_log: bool | None = None

    @property
    def pings(self) -> Counter[int]:
        """How often the container answered /ping with each status, as its access log says."""
        return Counter(int(match[1]) for line in self.log if (match := PING.search(line)))
