"""A schedule: which sequences run in one step, and how many tokens of each."""

from dataclasses import dataclass
from typing import NamedTuple

from container.engine.sequence import Sequence


class BlockCopy(NamedTuple):
    """A copy of a block to a slot of the host's memory, or back."""

    to_host: bool
    block_id: int
    slot: int


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """Tokens `start` to `end` of a sequence, to be computed in this step.

    `samples`: the step reaches its last token, so that the next one is sampled. `draft` guesses
    what a decode will sample now and next; the step computes these as well. `num_preemptions`
    counts the preemptions that the sequence has been through.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool
    num_preemptions: int
    draft: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, sequence: Sequence, num_tokens: int, draft: tuple[int, ...] = ()
    ) -> "ScheduledSequence":
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
    def is_stale(self) -> bool:
        """Whether the sequence has ended or been preempted since this was planned."""
        sequence = self.sequence
        return (
            sequence.finish_reason is not None or sequence.num_preemptions != self.num_preemptions
        )

    @property
    def num_prompt_logprobs(self) -> int:
        """How many prompt tokens follow a token of this step, if their logprobs are wanted."""
        sequence = self.sequence
        if not sequence.params.prompt_logprobs or sequence.has_prompt_logprobs:
            return 0
        return max(0, min(self.end, sequence.prompt_len - 1) - self.start)


@dataclass(frozen=True, slots=True)
class Batch:
    """The plan of one step. `copies` are to be made, in their order, before it writes anything."""

    items: tuple[ScheduledSequence, ...]
    copies: tuple[BlockCopy, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens in the forward pass."""
        return sum(item.num_tokens + len(item.draft) for item in self.items)

    def without_stale(self) -> "Batch":
        """The items whose sequences still go on; itself if all do."""
        if not any(item.is_stale for item in self.items):
            return self
        return Batch(tuple(item for item in self.items if not item.is_stale), self.copies)
