"""A batch: which sequences run in one step, and how many tokens of each. Ints only."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol

from container.engine.cold import Move
from container.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Tokens `start` to `end` of a sequence, to be computed in this step.

    `samples`: the step reaches its last token, so that the next one is sampled. `draft` guesses
    what a decode will sample now and next; the step computes these as well. `attempt` counts the
    preemptions that the sequence has been through.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool
    attempt: int
    draft: tuple[int, ...] = ()

    @classmethod
    def of(cls, sequence: Sequence, num_tokens: int, draft: tuple[int, ...] = ()) -> "Scheduled":
        """The next tokens of a sequence, as it stands now."""
        start = sequence.num_computed
        samples = num_tokens == sequence.num_to_compute
        return cls(sequence, start, num_tokens, samples, sequence.num_preemptions, draft)

    @property
    def end(self) -> int:
        """Tokens in the cache when the step is done, without those of the draft."""
        return self.start + self.num_tokens

    @property
    def is_decode(self) -> bool:
        """Whether it computes one token of the completion; all else is a chunk of the prompt."""
        return self.num_tokens == 1 and self.start >= self.sequence.prompt_len

    @property
    def is_void(self) -> bool:
        """Whether the sequence has ended or been preempted since this was planned."""
        sequence = self.sequence
        return sequence.finish_reason is not None or sequence.num_preemptions != self.attempt

    @property
    def num_prompt_logprobs(self) -> int:
        """How many prompt tokens follow a token of this step, if their logprobs are wanted."""
        sequence = self.sequence
        if not sequence.params.prompt_logprobs or sequence.has_prompt_logprobs:
            return 0
        return max(0, min(self.end, sequence.prompt_len - 1) - self.start)


@dataclass(frozen=True, slots=True)
class Batch:
    """The plan of one step. `moves` are to be made, in their order, before it writes anything."""

    items: tuple[Scheduled, ...]
    moves: tuple[Move, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens in the forward pass."""
        return sum(item.num_tokens + len(item.draft) for item in self.items)

    def without_void(self) -> "Batch":
        """The items whose sequences still go on; itself if all do."""
        if not any(item.is_void for item in self.items):
            return self
        return Batch(tuple(item for item in self.items if not item.is_void), self.moves)


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


class RunningStep(Protocol):
    """A step that a model has begun. Perhaps on a device, which goes on while nobody waits."""

    def sample(self, batch: Batch) -> None:
        """Pick the next tokens of this part of the step's batch.

        All tokens of its sequences but those that this step samples are known by now.
        """
        ...

    def read(self) -> StepOutput:
        """Wait for what was sampled."""
        ...


class ModelRunner(Protocol):
    """What the engine needs of a model; tests script one, container.model implements it.

    `overlaps`: a step may begin before the tokens of the one before are read.
    """

    overlaps: bool

    def begin(self, batch: Batch) -> RunningStep:
        """Run one forward pass, or have a device run it."""
        ...


class WholeSteps(ABC):
    """Implements ModelRunner for one that runs a step in one go."""

    overlaps = False

    def begin(self, batch: Batch) -> RunningStep:
        """Run the whole step."""
        return _DoneStep(self.execute(batch))

    @abstractmethod
    def execute(self, batch: Batch) -> StepOutput:
        """Run one step."""


@dataclass(frozen=True, slots=True)
class _DoneStep:
    output: StepOutput

    def sample(self, batch: Batch) -> None:
        """Nothing is left to do: without overlap the batch is still the same."""

    def read(self) -> StepOutput:
        return self.output


def run_whole(runner: ModelRunner, batch: Batch) -> StepOutput:
    """Run one step and wait for it."""
    step = runner.begin(batch)
    step.sample(batch)
    return step.read()
