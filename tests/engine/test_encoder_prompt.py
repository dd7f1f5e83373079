"""The layout of prompts that an encoder reads, and the plan of a step with them."""

from container.engine.blocks.encoder_prompt import lay_out
from container.engine.schedule import ScheduledSequence
from container.engine.sequence import Sequence
from container.messages.engine import SamplingParams
from container.model.forward_batch import make_plan
from tests.support.engines import engine_config

PARAMS = SamplingParams(max_new_tokens=8)


def _sequence(length: int, table: list[int]) -> Sequence:
    config = engine_config(decoder_start=(3,))
    sequence = config.make_sequence(0, list(range(5, 5 + length)), PARAMS)
    sequence.block_table = table
    sequence.num_computed = sequence.encoder.begin(0)
    return sequence


def test_the_decoder_begins_a_block() -> None:
    ids, encoder = lay_out([5, 6, 7, 8, 9], (3, 4), 4)
    assert ids == [5, 6, 7, 8, 9, 0, 0, 0, 3, 4]
    assert (encoder.length, encoder.end) == (5, 8)
    assert lay_out([5, 6, 7, 8], (3,), 4)[0] == [5, 6, 7, 8, 3]
    # Cached blocks count as computed, and so does a prompt that the encoder has still to read.
    assert [encoder.begin(count) for count in (0, 4, 8, 12)] == [8, 8, 8, 12]


def test_every_block_is_named_by_the_whole_prompt() -> None:
    first, same, longer = (_sequence(length, []) for length in (6, 6, 7))
    assert first.key_ids(0, 9) == same.key_ids(0, 9)
    assert first.key_ids(0, 4) != longer.key_ids(0, 4)
    assert first.key_ids(8, 9) == [3]
    assert engine_config().make_sequence(0, [5, 6], PARAMS).key_ids(0, 2) == [5, 6]


def test_a_plan_has_a_table_for_each_kind_of_attention() -> None:
    begun, new = _sequence(6, [0, 1, 2]), _sequence(3, [3, 4])
    begun.num_computed += 1
    begun.token_ids.append(11)
    items = [ScheduledSequence.of(begun, 1), ScheduledSequence.of(new, 1)]
    assert [item.writes_encoded for item in items] == [False, True]
    plan = make_plan(items, items, [], block_size=4, scratch_block=64)
    assert (plan.token_ids, plan.positions) == ([11, 3], [1, 0])
    assert plan.slot_mapping == [4 * 2 + 1, 4 * 4]
    assert (plan.groups[0].block_table, plan.groups[0].context_lens) == ([[2]], [2])
    assert (plan.chunks[0].block_table, plan.chunks[0].context_len) == ([4], 1)
    assert plan.cross is not None
    [group], [chunk] = plan.cross.groups, plan.cross.chunks
    assert (group.block_table, group.context_lens) == ([[0, 1]], [6])
    assert (chunk.start, chunk.stop, chunk.block_table, chunk.context_len) == (1, 2, [3], 3)
    assert plan.cross.slot_mapping == [12, 13, 14]
    assert plan.logit_rows == [0, 1]
