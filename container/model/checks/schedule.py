"""The schedule of the checks: two sequences, in chunks and decodes, as the engine could plan it."""

from collections.abc import Iterator, Sequence

from container.engine import sequence as engine_sequence
from container.engine.schedule import ScheduledSequence
from container.messages.engine import SamplingParams
from container.model.forward_batch import ForwardPlan, make_plan

# The fraction of the ids that is the prompt; the rest is decoded.
PROMPT_FRACTION = 0.9


def plan_schedule(ids: list[int], block_size: int) -> Iterator[tuple[ForwardPlan, list[int]]]:
    """Plan steps of two sequences with these ids; also the positions of the tokens with logits.

    Their prompts are prefilled in two chunks, with and without a prefix, beside a decode; then both
    decode, with contexts of different lengths in one group. Their blocks alternate, out of order.
    """
    each = -(-len(ids) // block_size)
    tables = [list(range(which, 2 * each, 2)) for which in range(2)]
    tables[0].reverse()
    sequences = [_sequence(ids, table, slot) for slot, table in enumerate(tables)]
    length = sequences[0].prompt_len
    ends = [(length // 2, 0), (length, length // 3), (length + 1, length)]
    ends += [(end + 1, end) for end in range(length + 1, len(ids))]
    for step in ends:
        items = [
            ScheduledSequence.of(sequence, end - sequence.num_computed)
            for sequence, end in zip(sequences, step, strict=True)
            if end > sequence.num_computed
        ]
        scratch_block = num_blocks(ids, block_size)
        plan = make_plan(items, items, [], block_size=block_size, scratch_block=scratch_block)
        yield plan, [item.end - 1 for item in items]
        for item in items:
            item.sequence.num_computed += item.num_tokens


def prompt_len(ids: Sequence[int]) -> int:
    """Return how many of the ids are the prompt; the rest are decoded."""
    return max(2, round(PROMPT_FRACTION * len(ids)))


def num_blocks(ids: Sequence[int], block_size: int) -> int:
    """Return the number of blocks that the schedule needs."""
    return 2 * -(-len(ids) // block_size)


def _sequence(ids: list[int], table: list[int], slot: int) -> engine_sequence.Sequence:
    params = SamplingParams(max_new_tokens=len(ids))
    sequence = engine_sequence.Sequence(0, ids[: prompt_len(ids)], params)
    sequence.token_ids = list(ids)
    sequence.block_table, sequence.state_slot = table, slot
    return sequence
