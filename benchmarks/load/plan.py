"""The plan of serving.py: the sizes of requests, the model, and the sides that are compared."""

import random
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import prompts, routes

# Requests of all clients together in a round, and the bounds of what one client sends.
ROUND_REQUESTS = 24
FEWEST, MOST = 2, 6
# A prompt of more tokens takes seconds; then each client sends one.
LONG_PROMPT = 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes of a run. Prompts are new in every round, and the same for all sides."""

    levels: tuple[int, ...]
    rounds: int
    repeats: int
    requests_per_client: int | None
    prompt_tokens: int
    new_tokens: int
    seed: int

    def prompts(
        self, source: prompts.Source, clients: int, each: int, draw: int
    ) -> list[list[list[int]]]:
        """Draw the prompts of one round as ids: `each` prompts for each client."""
        numbers = random.Random(f"{self.seed}/{clients}/{draw}")
        return [
            [source.draw(numbers, self.prompt_tokens) for _ in range(each)] for _ in range(clients)
        ]

    @property
    def max_tokens(self) -> int:
        """Tokens that all clients have in a cache at a time, at most."""
        return max(self.levels) * (self.prompt_tokens + self.new_tokens)

    def requests(self, clients: int) -> int:
        """How many prompts each client sends in a round."""
        if self.requests_per_client is not None:
            return self.requests_per_client
        if self.prompt_tokens > LONG_PROMPT:
            return 1
        return min(MOST, max(FEWEST, ROUND_REQUESTS // clients))


@dataclass(frozen=True, slots=True)
class Match:
    """Our server with some settings, and the peers that it is measured beside."""

    name: str
    settings: dict[str, str]
    peers: tuple[str, ...]
    levels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """The folder that is served, the prompts that suit it, and the route that is measured."""

    folder: Path
    source: prompts.Source
    route: routes.Route
    dtype: str
