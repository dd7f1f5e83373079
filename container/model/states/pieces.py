"""Splits a pass into the pieces that a mixer computes in one call each.

    | d d d d | chunk of A .............. | chunk of B .... | padding |
      one call  one call for each segment   one call

All decodes are one call, [sequences, 1, channels]. A chunk is cut at the multiples of SEGMENT, and
each segment is a call, [1, tokens, channels]; a last token is never alone, since one token with
states is a decode to a mixer. The engine's chunks end at such multiples or with their sequence, so
the calls for a prompt, and with them every bit of its states, are the same however it was split.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from container.model.async_copy import to_device
from container.model.forward_batch import MIN_ROWS, ChunkPlan, ForwardPlan
from container.model.states.cache import SCRATCH_ROW, state_row

# Tokens of a segment: a multiple of the chunks in which mixers compute prompts.
SEGMENT = 64


@dataclass(frozen=True, slots=True)
class Segment:
    """Adjacent tokens of one sequence, in rows `start` to `stop` of the pass.

    The states after them are also kept in row `snapshot` of the state cache.
    """

    start: int
    stop: int
    states: slice
    has_states: bool
    snapshot: int | None = None
    is_decode = False

    @property
    def rows(self) -> slice:
        """The rows of the pass."""
        return slice(self.start, self.stop)

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the mixer's inputs, [1, tokens, channels], of a pass, [1, rows, channels]."""
        return rows[:, self.start : self.stop]

    def put(self, results: torch.Tensor, out: torch.Tensor) -> None:
        """Store the mixer's outputs in those of the pass."""
        out[:, self.start : self.stop] = results


@dataclass(frozen=True, slots=True)
class Decodes:
    """One token of each sequence, in the first rows of the pass.

    `rows` are their rows in the order of the call, one of them twice if there are fewer than
    MIN_ROWS; `order` is the place in the call of each row of the pass. `states` are the rows of the
    state cache, a slice where they are adjacent.
    """

    rows: torch.Tensor
    order: torch.Tensor
    states: slice | torch.Tensor
    has_states = True
    is_decode = True
    snapshot = None

    @classmethod
    def of(cls, slots: list[int], device: torch.device) -> "Decodes":
        """Lay out the decodes of these slots; a negative slot is padding's."""
        states = [state_row(slot) for slot in slots]
        states += [SCRATCH_ROW] * (MIN_ROWS - len(states))
        call = sorted(range(len(states)), key=states.__getitem__)
        first = states[call[0]]
        is_range = [states[row] for row in call] == list(range(first, first + len(states)))
        index_of = {row: index for index, row in enumerate(call)}

        def ints(values: list[int]) -> torch.Tensor:
            return to_device(values, device, torch.int64)

        return cls(
            ints([min(row, len(slots) - 1) for row in call]),
            ints([index_of[row] for row in range(len(slots))]),
            slice(first, first + len(states)) if is_range else ints([states[p] for p in call]),
        )

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the mixer's inputs, [sequences, 1, channels], of a pass, [1, rows, channels]."""
        return rows[0].index_select(0, self.rows)[:, None]

    def put(self, results: torch.Tensor, out: torch.Tensor) -> None:
        """Store the mixer's outputs in those of the pass."""
        out[0, : len(self.order)] = results[:, 0].index_select(0, self.order)


Piece = Segment | Decodes


def split_pass(
    plan: ForwardPlan, device: torch.device, segment: int = SEGMENT, *, continues: bool = True
) -> list[Piece]:
    """Return the pieces of a pass; rows of padding beside chunks are in none.

    `continues`: a mixer can compute several tokens after others.
    """
    pieces: list[Piece] = []
    if plan.num_decodes:
        pieces.append(Decodes.of(plan.state_slots[: plan.num_decodes], device))
    snapshots_of: dict[int, dict[int, int]] = defaultdict(dict)
    for index, (position, slot) in plan.snapshots:
        snapshots_of[index][position] = state_row(slot)
    for index, chunk in enumerate(plan.chunks):
        row = state_row(plan.state_slots[plan.num_decodes + index])
        pieces += _segments(chunk, row, snapshots_of[index], segment, continues)
    return pieces


def _segments(
    chunk: ChunkPlan, row: int, snapshots: dict[int, int], segment: int, continues: bool
) -> Iterator[Segment]:
    """Cut a chunk; `snapshots` maps positions to rows of the state cache."""
    position, start = chunk.context_len - (chunk.stop - chunk.start), chunk.start
    while start < chunk.stop:
        has_states = position > 0
        count = segment - position % segment if continues or not has_states else 1
        stop = min(chunk.stop, start + count)
        can_join = continues or not has_states
        if can_join and chunk.stop - stop == 1 and position + stop - start not in snapshots:
            stop = chunk.stop
        position += stop - start
        states = slice(row, row + 1)
        yield Segment(start, stop, states, has_states, snapshots.get(position))
        start = stop
