"""The schedule of the checks: two sequences, in chunks and decodes, as the engine could plan it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from container.engine import sequence as engine_sequence
from container.engine.schedule import ScheduledSequence
from container.messages.engine import SamplingParams
from container.messages.images import ImageTensors
from container.model.forward_batch import ForwardPlan, make_plan

# The fraction of the ids that is the prompt; the rest is decoded, up to this many ids.
PROMPT_FRACTION, MAX_DECODED = 0.9, 6


@dataclass(frozen=True, slots=True)
class CheckPrompt:
    """The ids of a check, and the images of those that begin it; see the engine's Sequence."""

    ids: list[int]
    images: ImageTensors = field(default_factory=dict)
    image_end: int = 0
    position_shift: int = 0
    whole_spans: tuple[tuple[int, int], ...] = ()

    def whole_end(self, end: int) -> int:
        """Return where a chunk may end instead of inside of a whole span."""
        return next((stop for start, stop in self.whole_spans if start < end < stop), end)


class CheckStep(NamedTuple):
    """A step's plan, the indexes of its rows, and those of the tokens with logits."""

    plan: ForwardPlan
    indexes: list[int]
    with_logits: list[int]


def plan_schedule(prompt: CheckPrompt, block_size: int) -> Iterator[CheckStep]:
    """Plan steps of two sequences with these ids.

    Their prompts are prefilled in two chunks, with and without a prefix, beside a decode; then both
    decode, with contexts of different lengths in one group. Their blocks alternate, out of order.
    """
    ids = prompt.ids
    each = -(-len(ids) // block_size)
    tables = [list(range(which, 2 * each, 2)) for which in range(2)]
    tables[0].reverse()
    sequences = [_sequence(prompt, table, slot) for slot, table in enumerate(tables)]
    length = sequences[0].prompt_len
    half, third = prompt.whole_end(length // 2), prompt.whole_end(length // 3)
    ends = [(half, 0), (length, third), (length + 1, length)]
    ends += [(end + 1, end) for end in range(length + 1, len(ids))]
    for step in ends:
        items = [
            ScheduledSequence.of(sequence, end - sequence.num_computed)
            for sequence, end in zip(sequences, step, strict=True)
            if end > sequence.num_computed
        ]
        yield _planned(items, prompt, block_size)
        for item in items:
            item.sequence.num_computed += item.num_tokens


def prompt_len(ids: Sequence[int]) -> int:
    """Return how many of the ids are the prompt; all after them are decoded."""
    return max(2, round(PROMPT_FRACTION * len(ids)), len(ids) - MAX_DECODED)


def num_blocks(ids: Sequence[int], block_size: int) -> int:
    """Return the number of blocks that the schedule needs."""
    return 2 * -(-len(ids) // block_size)


def _planned(items: list[ScheduledSequence], prompt: CheckPrompt, block_size: int) -> CheckStep:
    scratch_block = num_blocks(prompt.ids, block_size)
    plans = []
    for shift in (0, prompt.position_shift):
        for item in items:
            item.sequence.position_shift = shift
        plans.append(
            make_plan(items, items, [], block_size=block_size, scratch_block=scratch_block)
        )
    return CheckStep(plans[1], plans[0].positions, [item.end - 1 for item in items])


def _sequence(prompt: CheckPrompt, table: list[int], slot: int) -> engine_sequence.Sequence:
    ids = prompt.ids
    params = SamplingParams(max_new_tokens=len(ids))
    sequence = engine_sequence.Sequence(0, ids[: prompt_len(ids)], params)
    sequence.token_ids = list(ids)
    sequence.block_table, sequence.state_slot = table, slot
    sequence.image_end, sequence.whole_spans = prompt.image_end, prompt.whole_spans
    return sequence
