"""A schedule: which sequences run in one step, and how many tokens of each."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from container.engine.sequence import Sequence


class BlockCopy(NamedTuple):
    """A copy of one KV block to a host memory slot, or back to the device."""

    to_host: bool
    block_id: int
    slot: int


class StateCopy(NamedTuple):
    """A copy of a snapshot's states to the state slot of a running sequence."""

    source: int
    target: int


class Snapshot(NamedTuple):
    """Keep a sequence's states after its first `position` tokens in a slot."""

    position: int
    slot: int


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """Schedule tokens `start` to `end` of a sequence for one step.

    `samples`: the step computes the sequence's last token, so the next token is sampled. `draft`
    holds speculative tokens after a decode's last one; the step computes and verifies them too.
    `snapshots` are taken while a chunk is computed.
    `num_preemptions` is the sequence's preemption count when it was scheduled; see `is_stale`.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool
    num_preemptions: int
    draft: tuple[int, ...] = ()
    snapshots: tuple[Snapshot, ...] = ()

    @classmethod
    def of(
        cls, sequence: Sequence, num_tokens: int, draft: tuple[int, ...] = ()
    ) -> "ScheduledSequence":
        """Schedule the next `num_tokens` tokens of a sequence from its current state."""
        start = sequence.num_computed
        samples = num_tokens == sequence.num_to_compute
        return cls(sequence, start, num_tokens, samples, sequence.num_preemptions, draft)

    @property
    def end(self) -> int:
        """Tokens in the KV cache after the step, draft tokens excluded."""
        return self.start + self.num_tokens

    @property
    def is_decode(self) -> bool:
        """Whether the item computes one completion token; every other item is a prefill chunk."""
        return self.num_tokens == 1 and self.start >= self.sequence.prompt_len

    @property
    def writes_encoded(self) -> bool:
        """Whether the step stores keys and values of what the encoder made of the prompt."""
        encoder = self.sequence.encoder
        return self.start == encoder.end and encoder.num_cached < encoder.length

    @property
    def is_stale(self) -> bool:
        """Whether the sequence has finished or been preempted since it was scheduled."""
        sequence = self.sequence
        return (
            sequence.finish_reason is not None or sequence.num_preemptions != self.num_preemptions
        )

    @property
    def num_prompt_logprobs(self) -> int:
        """Number of prompt logprobs that this step computes; 0 unless the request asks for them."""
        sequence = self.sequence
        if not sequence.lacks_prompt_logprobs:
            return 0
        return max(0, min(self.end, sequence.prompt_len - 1) - self.start)


@dataclass(frozen=True, slots=True)
class Batch:
    """One scheduled step. All copies must run, in order, before the forward pass."""

    items: tuple[ScheduledSequence, ...]
    copies: tuple[BlockCopy, ...] = ()
    state_copies: tuple[StateCopy, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens in the forward pass."""
        return sum(item.num_tokens + len(item.draft) for item in self.items)

    def without_stale(self) -> "Batch":
        """Return the batch without stale items; the same object if no item is stale."""
        if not any(item.is_stale for item in self.items):
            return self
        items = tuple(item for item in self.items if not item.is_stale)
        return replace(self, items=items)
