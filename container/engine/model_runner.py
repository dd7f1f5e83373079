"""The model runner protocol that the engine needs, and a synchronous base class."""

from abc import ABC, abstractmethod
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from container.engine.schedule import Batch
from container.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Sampled:
    """The next token of one sequence, with the log-probabilities that its request asks for."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class StepOutput:
    """The output of one step: one sampled token for each item that samples, in batch order.

    An item with a draft has one more sampled token for each draft token; those count as far as
    the draft is accepted. `prompt_logprobs` maps an item's index in the batch to the
    log-probabilities of the prompt tokens that follow its computed tokens, and `prompt_tops` to the
    most likely tokens at their places, for requests that ask for those.
    """

    sampled: list[Sampled]
    prompt_logprobs: dict[int, list[float]] = field(default_factory=dict)
    prompt_tops: dict[int, list[list[tuple[int, float]]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PromptLayout:
    """How a prompt that an encoder reads lies in its sequence; see the fields of `Sequence`."""

    position_shift: int = 0
    whole_spans: tuple[tuple[int, int], ...] = ()


class PendingStep(Protocol):
    """A step in flight, possibly on a device that computes asynchronously."""

    def sample(self, batch: Batch) -> None:
        """Sample the next tokens of `batch`, a subset of the step's batch.

        Every token of its sequences is known by then, except those that this step samples.
        """
        ...

    def get_output(self) -> StepOutput:
        """Wait for the sampled tokens and return them."""
        ...


class ModelRunner(Protocol):
    """Runs forward passes for the engine; container.model implements it, tests script it.

    `overlaps`: a step may begin before the output of the previous one is read.
    `samples_in_execute`: `execute` samples already, so all bitmasks must be ready before it.
    """

    overlaps: bool
    samples_in_execute: bool

    def prepare_prompt(self, sequence: Sequence, *, encodes: bool) -> "Future[PromptLayout] | None":
        """Begin to encode a prompt or its images in another thread; None if a step does all of it.

        `encodes`: the outputs will be needed, since no cached prefix has them all.
        """
        ...

    def execute(self, batch: Batch) -> PendingStep:
        """Run one forward pass, or launch it on a device."""
        ...


class SyncModelRunner(ABC):
    """Implements ModelRunner for a runner that computes and samples a step in one call."""

    overlaps = False
    samples_in_execute = True

    def prepare_prompt(self, sequence: Sequence, *, encodes: bool) -> "Future[PromptLayout] | None":
        """Do nothing: `run` encodes as well."""
        return None

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
        """Do nothing: `run` has sampled, and without overlap no item can be stale."""

    def get_output(self) -> StepOutput:
        return self.output


def run_step(runner: ModelRunner, batch: Batch) -> StepOutput:
    """Run one step and return its output."""
    step = runner.execute(batch)
    step.sample(batch)
    return step.get_output()
