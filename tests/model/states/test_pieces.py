"""A pass in pieces: the same calls for a prompt however it was split, and no row is lost."""

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from container.engine.adapters import NO_ADAPTER
from container.engine.schedule import Snapshot
from container.model.forward_batch import ChunkPlan, ForwardPlan
from container.model.states.pieces import Decodes, Segment, split_pass

CPU = torch.device("cpu")


def _plan(num_decodes: int, chunks: list[ChunkPlan], slots: list[int]) -> ForwardPlan:
    rows = chunks[-1].stop if chunks else num_decodes
    return ForwardPlan(
        token_ids=[0] * rows, positions=[0] * rows, slot_mapping=[0] * rows, logit_rows=[],
        groups=[], chunks=chunks, num_decodes=num_decodes, adapters=[(NO_ADAPTER, rows)],
        state_slots=slots,
    )  # fmt: skip


@given(st.lists(st.integers(0, 40), unique=True, min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_each_decode_meets_its_own_states(slots: list[int]) -> None:
    decodes = Decodes.of(slots, CPU)
    pass_rows = torch.arange(len(slots) + 3.0)[None, :, None]
    taken = decodes.take(pass_rows)
    assert len(taken) == max(2, len(slots))
    states = torch.arange(50)[decodes.states]
    for row, slot in enumerate(slots):
        index = decodes.order[row]
        assert taken[index].item() == row
        assert states[index] == slot + 1
    out = torch.full_like(pass_rows, -1)
    decodes.put(taken, out)
    assert out[0, :, 0].tolist() == [*range(len(slots)), -1, -1, -1]


@pytest.mark.parametrize(
    ("slots", "is_range"), [([3, 1, 2], True), ([0], True), ([4], False), ([1, 3], False)]
)
def test_adjacent_slots_are_not_copied(slots: list[int], is_range: bool) -> None:
    assert isinstance(Decodes.of(slots, CPU).states, slice) == is_range


def test_padding_has_states_of_its_own() -> None:
    decodes = Decodes.of([5, -1], CPU)
    states = torch.arange(50)[decodes.states]
    assert states[decodes.order].tolist() == [6, 0]


@pytest.mark.parametrize("splits", [[150], [64, 150], [128, 150], [64, 128, 150]])
def test_a_prompt_is_cut_at_the_same_places_however_it_was_split(splits: list[int]) -> None:
    cuts, first = [], 0
    for end in splits:
        plan = _plan(0, [ChunkPlan(0, end - first, end, [])], [7])
        for piece in split_pass(plan, CPU):
            assert isinstance(piece, Segment)
            assert piece.states == slice(8, 9)
            assert piece.has_states == (first + piece.start > 0)
            cuts.append((first + piece.start, first + piece.stop))
        first = end
    assert cuts == [(0, 64), (64, 128), (128, 150)]


@pytest.mark.parametrize(
    ("length", "expected"), [(128, [64, 128]), (129, [64, 129]), (130, [64, 128, 130]), (65, [65])]
)
def test_a_last_token_is_not_alone(length: int, expected: list[int]) -> None:
    plan = _plan(0, [ChunkPlan(0, length, length, [])], [0])
    assert [piece.stop for piece in split_pass(plan, CPU) if isinstance(piece, Segment)] == expected


def test_a_snapshot_is_taken_where_a_segment_ends() -> None:
    plan = _plan(0, [ChunkPlan(0, 5, 5, []), ChunkPlan(5, 105, 164, [])], [0, 1])
    plan = msgspec.structs.replace(plan, snapshots=[(1, Snapshot(128, 9))])
    pieces = [piece for piece in split_pass(plan, CPU) if isinstance(piece, Segment)]
    assert [(piece.stop, piece.snapshot) for piece in pieces] == [(5, None), (69, 10), (105, None)]


def test_decodes_come_before_chunks() -> None:
    plan = _plan(2, [ChunkPlan(2, 7, 5, []), ChunkPlan(7, 10, 70, [])], [0, 1, 4, 2])
    decodes, *segments = split_pass(plan, CPU)
    assert isinstance(decodes, Decodes)
    assert [
        (p.start, p.stop, p.states, p.has_states) for p in segments if isinstance(p, Segment)
    ] == [
        (2, 7, slice(5, 6), False),
        (7, 10, slice(3, 4), True),
    ]
