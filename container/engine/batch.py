"""A batch: which sequences run in one step, and how many tokens of each. Ints only."""

from dataclasses import dataclass, field
from typing import Protocol

from container.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Scheduled:
    """`num_tokens` tokens of a sequence, from its `num_computed` on, in this step.

    `draft` guesses what a decode will sample now and next; the step computes these as well.
    """

    sequence: Sequence
    num_tokens: int
    draft: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """Tokens in the cache when the step is done, without those of the draft."""
        return self.sequence.num_computed + self.num_tokens

    @property
    def is_decode(self) -> bool:
        """Whether it computes one token of the completion; all else is a chunk of the prompt."""
        return self.num_tokens == 1 and self.sequence.num_computed >= self.sequence.prompt_len

    @property
    def samples(self) -> bool:
        """Whether the step reaches the last known token, so that the next one is sampled."""
        return self.end == len(self.sequence.token_ids)

    @property
    def num_prompt_logprobs(self) -> int:
        """How many prompt tokens follow a token of this step, if their logprobs are wanted."""
        sequence = self.sequence
        if not sequence.params.prompt_logprobs or sequence.has_prompt_logprobs:
            return 0
        return max(0, min(self.end, sequence.prompt_len - 1) - sequence.num_computed)


@dataclass(frozen=True, slots=True)
class Batch:
    """The plan of one step."""

    items: tuple[Scheduled, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens in the forward pass."""
        return sum(item.num_tokens + len(item.draft) for item in self.items)


@dataclass(frozen=True, slots=True)
class Sampled:
    """The next token of one sequence, with the log-probabilities that its request wanted."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step has made: a token for each item that samples, in their order.

    An item with a draft has one more for each token of it, which follow if the draft comes true.
    `prompt_logprobs` has, by an item's place in the batch, those of the prompt tokens after each
    computed one.
    """

    sampled: list[Sampled]
    prompt_logprobs: dict[int, list[float]] = field(default_factory=dict)


class ModelRunner(Protocol):
    """What the engine needs of a model; tests script one, container.model implements it."""

    def execute(self, batch: Batch) -> StepOutput:
        """Run one forward pass."""
        ...
