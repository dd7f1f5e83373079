"""When requests are sent: in a closed loop, at random, or as a trace says."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Level:
    """One level of load.

    With `clients` each of them sends its next request when the last one is answered. With `rate`
    requests arrive at random (a Poisson process), so many in a second on average; with neither
    they arrive as the trace says. `most` bounds those that run at a time.
    """

    clients: int | None = None
    rate: float | None = None
    most: int | None = None

    @property
    def name(self) -> str:
        """A short name for tables and plots."""
        if self.clients is not None:
            return f"{self.clients} client{'s' if self.clients > 1 else ''}"
        return f"{self.rate:g} requests/s" if self.rate is not None else "trace"

    @property
    def size(self) -> float:
        """The position on a plot's axis."""
        return float(self.clients or self.rate or 0)


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Yield the seconds at which requests arrive, without end."""
    numbers = random.Random(f"arrivals/{seed}")
    return itertools.accumulate(numbers.expovariate(rate) for _ in itertools.count())
