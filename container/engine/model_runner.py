"""The model runner that the engine needs: a protocol, and a synchronous form."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol

from container.engine.schedule import Batch


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


class PendingStep(Protocol):
    """A step that a model has begun. Perhaps on a device, which goes on while nobody waits."""

    def sample(self, batch: Batch) -> None:
        """Pick the next tokens of this part of the step's batch.

        All tokens of its sequences but those that this step samples are known by now.
        """
        ...

    def get_output(self) -> StepOutput:
        """Wait for what was sampled."""
        ...


class ModelRunner(Protocol):
    """What the engine needs of a model; tests script one, container.model implements it.

    `overlaps`: a step may begin before the tokens of the one before are read.
    """

    overlaps: bool

    def execute(self, batch: Batch) -> PendingStep:
        """Run one forward pass, or have a device run it."""
        ...


class SyncModelRunner(ABC):
    """Implements ModelRunner for one that runs a step in one go."""

    overlaps = False

    def execute(self, batch: Batch) -> PendingStep:
        """Run the whole step."""
        return _CompletedStep(self.run(batch))

    @abstractmethod
    def run(self, batch: Batch) -> StepOutput:
        """Run one step."""


@dataclass(frozen=True, slots=True)
class _CompletedStep:
    output: StepOutput

    def sample(self, batch: Batch) -> None:
        """Nothing is left to do: without overlap the batch is still the same."""

    def get_output(self) -> StepOutput:
        return self.output


def run_step(runner: ModelRunner, batch: Batch) -> StepOutput:
    """Run one step and wait for it."""
    step = runner.execute(batch)
    step.sample(batch)
    return step.get_output()
