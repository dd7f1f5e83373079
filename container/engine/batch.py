"""A batch: which sequences run in one step, and how many tokens of each. Ints only."""

from dataclasses import dataclass
from typing import Protocol

from container.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Scheduled:
    """`num_tokens` tokens of a sequence, from its `num_computed` on, in this step."""

    sequence: Sequence
    num_tokens: int

    @property
    def end(self) -> int:
        """Tokens in the cache when the step is done."""
        return self.sequence.num_computed + self.num_tokens

    @property
    def samples(self) -> bool:
        """Whether the step reaches the last known token, so that the next one is sampled."""
        return self.end == len(self.sequence.token_ids)


@dataclass(frozen=True, slots=True)
class Batch:
    """The plan of one step."""

    items: tuple[Scheduled, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens in the forward pass."""
        return sum(item.num_tokens for item in self.items)


@dataclass(frozen=True, slots=True)
class Sampled:
    """The next token of one sequence, and its log-probability if the request wanted it."""

    token_id: int
    logprob: float | None = None


class ModelRunner(Protocol):
    """What the engine needs of a model; tests script one, container.model implements it."""

    def execute(self, batch: Batch) -> list[Sampled]:
        """Run one forward pass; return a token for each item that samples, in their order."""
        ...
