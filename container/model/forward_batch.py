"""The plan of a forward pass: token ids, slots and block tables as plain ints.

The process that schedules builds it from a batch; every process with a part of the model builds the
same tensors from it. No torch here, so that a plan can be sent and a test can read one.

Rows of the pass: decodes sorted by context, then chunks, then padding. A draft token is a decode of
its own, so that it rounds as it would have without the draft.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from container.engine.adapters import NO_ADAPTER
from container.engine.schedule import BlockCopy, ScheduledSequence, Snapshot, StateCopy

# GEMMs of one row and of several round differently in float32; two rows are the smallest batch
# whose results do not depend on the rest of the batch (measured, see docs/LOG.md).
MIN_ROWS = 2
# Contexts within this ratio share a group; gathering pads each to the longest.
GROUP_RATIO = 1.5
GROUP_SLACK = 4


class GroupPlan(msgspec.Struct, frozen=True, array_like=True):
    """Sequences with one query token each, in rows `start` to `stop`.

    `block_table` has a list of block ids for each of them, padded to one length; `context_lens` the
    number of tokens that each attends to.
    """

    start: int
    stop: int
    block_table: list[list[int]]
    context_lens: list[int]


class ChunkPlan(msgspec.Struct, frozen=True, array_like=True):
    """Prompt tokens of one sequence, in rows `start` to `stop`.

    The last of them attends to `context_len` tokens. The tokens of each of the `whole_spans` (first
    index, the one after the last) see each other.
    """

    start: int
    stop: int
    context_len: int
    block_table: list[int]
    whole_spans: list[tuple[int, int]] = []


class CrossPlan(msgspec.Struct, frozen=True, array_like=True):
    """The second table of a step: the blocks with what an encoder made of the rows' prompts.

    `slot_mapping` are the slots of the encoder's outputs that the step stores first.
    """

    slot_mapping: list[int]
    groups: list[GroupPlan]
    chunks: list[ChunkPlan]


class ForwardPlan(msgspec.Struct, frozen=True, array_like=True, tag="run"):
    """All inputs of a forward pass.

    `token_ids`, `positions` and `slot_mapping` (block id * block size + offset) have one number per
    row; `logit_rows` are the rows whose logits are returned. `num_decodes` rows come first.
    `adapters` maps runs of rows to adapters: (adapter, number of rows), in order. A negative token
    id, -1 - index, is a placeholder for the token that the last step sampled at that index of
    `num_placeholders`; 0 means no placeholders. `copies` run first, in order. `state_slots` are
    those of the decodes' rows and then of the chunks, negative for padding; empty without states.
    `state_copies` run first, too; `snapshots` are taken while a chunk is computed: (number of the
    chunk, snapshot). `cross` is there if an encoder has read the prompts.
    """

    token_ids: list[int]
    positions: list[int]
    slot_mapping: list[int]
    logit_rows: list[int]
    groups: list[GroupPlan]
    chunks: list[ChunkPlan]
    num_decodes: int
    adapters: list[tuple[int, int]]
    num_placeholders: int = 0
    copies: list[BlockCopy] = []
    state_slots: list[int] = []
    state_copies: list[StateCopy] = []
    snapshots: list[tuple[int, Snapshot]] = []
    cross: CrossPlan | None = None

    @property
    def has_adapters(self) -> bool:
        """Whether any row has an adapter."""
        return any(number != NO_ADAPTER for number, _ in self.adapters)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Adjacent tokens of one item: a chunk, or one token of a decode or its draft.

    Behind an encoder, `start` counts the decoder's tokens alone.
    """

    item: ScheduledSequence
    start: int
    ids: list[int]
    num_encoded_blocks: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.ids)

    @property
    def table(self) -> list[int]:
        return self.item.sequence.block_table[self.num_encoded_blocks :]

    @property
    def positions(self) -> list[int]:
        sequence = self.item.sequence
        shift, image_end = sequence.position_shift, sequence.image_end
        return [at + shift if at >= image_end else at for at in range(self.start, self.end)]

    @property
    def whole_spans(self) -> list[tuple[int, int]]:
        spans = self.item.sequence.whole_spans
        return [span for span in spans if span[1] > self.start and span[0] < self.end]

    def num_blocks(self, block_size: int) -> int:
        """Number of blocks that hold its context."""
        return -(-self.end // block_size)


def make_plan(
    items: list[ScheduledSequence],
    sampling: list[ScheduledSequence],
    scoring: list[ScheduledSequence],
    *,
    block_size: int,
    scratch_block: int,
    num_placeholders: int = 0,
    copies: Iterable[BlockCopy] = (),
    state_copies: Iterable[StateCopy] = (),
) -> ForwardPlan:
    """Lay out a step; padding rows write to `scratch_block`.

    The logit rows are each sampling item's last token and its draft, then, for each scoring item,
    all tokens that are followed by a prompt token.
    """
    decodes, chunks = _pieces(items, block_size)
    pieces = decodes + chunks
    num_tokens = sum(len(piece.ids) for piece in pieces)
    padding = max(0, MIN_ROWS - num_tokens)
    slots = [
        piece.table[position // block_size] * block_size + position % block_size
        for piece in pieces
        for position in range(piece.start, piece.end)
    ]
    return ForwardPlan(
        token_ids=[i for piece in pieces for i in piece.ids] + [0] * padding,
        positions=[i for piece in pieces for i in piece.positions] + [0] * padding,
        slot_mapping=slots + [scratch_block * block_size] * padding,
        logit_rows=_logit_rows(pieces, sampling, scoring),
        groups=_groups(decodes, block_size, scratch_block),
        chunks=_chunks(chunks, len(decodes), block_size),
        num_decodes=len(decodes) + (0 if chunks else padding),
        adapters=[(piece.item.sequence.adapter, len(piece.ids)) for piece in pieces]
        + [(NO_ADAPTER, padding)] * bool(padding),
        num_placeholders=num_placeholders,
        copies=list(copies),
        state_slots=_state_slots(decodes, chunks, 0 if chunks else padding),
        state_copies=list(state_copies),
        snapshots=[(at, each) for at, piece in enumerate(chunks) for each in piece.item.snapshots],
        cross=_cross(decodes, chunks, block_size, scratch_block),
    )


def _state_slots(decodes: list[_Piece], chunks: list[_Piece], padding: int) -> list[int]:
    decoded = [piece.item.sequence.state_slot for piece in decodes]
    prefilled = [piece.item.sequence.state_slot for piece in chunks]
    known = [slot for slot in [*decoded, *[-1] * padding, *prefilled] if slot is not None]
    return known if known != [-1] * padding else []


def _pieces(items: list[ScheduledSequence], block_size: int) -> tuple[list[_Piece], list[_Piece]]:
    """Split items into decodes, sorted by context, and chunks."""
    decodes: list[_Piece] = []
    chunks: list[_Piece] = []
    for item in items:
        start, placeholder = item.start, item.sequence.placeholder
        ids = item.sequence.token_ids[start : item.end]
        first, blocks = start - item.sequence.encoder.end, item.sequence.encoder.end // block_size
        if placeholder is not None and len(ids) < item.num_tokens:
            ids.append(-1 - placeholder)
        if item.is_decode:
            # A draft token attends to those before it: a pass stores all tokens before it attends.
            ids += item.draft
            decodes += [_Piece(item, first + i, [id_], blocks) for i, id_ in enumerate(ids)]
        else:
            chunks.append(_Piece(item, first, ids, blocks))
    decodes.sort(key=lambda piece: piece.end)
    return decodes, chunks


def _logit_rows(
    pieces: list[_Piece], sampling: list[ScheduledSequence], scoring: list[ScheduledSequence]
) -> list[int]:
    first_row: dict[tuple[int, int], int] = {}
    count = 0
    for piece in pieces:
        first_row[id(piece.item), piece.start + piece.item.sequence.encoder.end] = count
        count += len(piece.ids)
    rows: list[int] = []
    for item in sampling:
        rows.append(first_row[id(item), item.start] + item.num_tokens - 1)
        rows += [first_row[id(item), item.start + 1 + i] for i in range(len(item.draft))]
    for item in scoring:
        first = first_row[id(item), item.start]
        rows += range(first, first + item.num_prompt_logprobs)
    return rows


def _groups(decodes: list[_Piece], block_size: int, scratch_block: int) -> list[GroupPlan]:
    groups = []
    start = 0
    while start < len(decodes):
        limit = GROUP_RATIO * decodes[start].num_blocks(block_size) + GROUP_SLACK
        stop = start + 1
        while stop < len(decodes) and decodes[stop].num_blocks(block_size) <= limit:
            stop += 1
        width = decodes[stop - 1].num_blocks(block_size)
        tables = [piece.table[:width] for piece in decodes[start:stop]]
        padded = [table + [scratch_block] * (width - len(table)) for table in tables]
        lens = [piece.end for piece in decodes[start:stop]]
        groups.append(GroupPlan(start, stop, padded, lens))
        start = stop
    return groups


def _chunks(pieces: list[_Piece], row: int, block_size: int) -> list[ChunkPlan]:
    chunks = []
    for piece in pieces:
        stop = row + len(piece.ids)
        blocks = piece.table[: piece.num_blocks(block_size)]
        chunks.append(ChunkPlan(row, stop, piece.end, blocks, piece.whole_spans))
        row = stop
    return chunks


def _cross(
    decodes: list[_Piece], chunks: list[_Piece], block_size: int, scratch_block: int
) -> CrossPlan | None:
    """Lay out the second table; None if no encoder has read the prompts."""
    pieces = decodes + chunks
    if not any(piece.num_encoded_blocks for piece in pieces):
        return None
    groups, start = [], 0
    while start < len(decodes):
        sizes = [piece.num_encoded_blocks for piece in decodes[start:]]
        stop = start + _num_alike(sizes)
        width = max(piece.num_encoded_blocks for piece in decodes[start:stop])
        tables = [_encoded_blocks(piece) for piece in decodes[start:stop]]
        padded = [table + [scratch_block] * (width - len(table)) for table in tables]
        lens = [piece.item.sequence.encoder.length for piece in decodes[start:stop]]
        groups.append(GroupPlan(start, stop, padded, lens))
        start = stop
    slots: list[int] = []
    whole: list[ChunkPlan] = []
    for piece in chunks:
        encoder, table, stop = (
            piece.item.sequence.encoder,
            _encoded_blocks(piece),
            start + len(piece.ids),
        )
        whole.append(ChunkPlan(start, stop, encoder.length, table))
        start = stop
        if piece.item.writes_encoded:
            at = range(encoder.num_cached, encoder.length)
            slots += [table[i // block_size] * block_size + i % block_size for i in at]
    return CrossPlan(slots, groups, whole)


def _encoded_blocks(piece: _Piece) -> list[int]:
    return piece.item.sequence.block_table[: piece.num_encoded_blocks]


def _num_alike(sizes: list[int]) -> int:
    """Return how many of the first sizes may share a group."""
    low = high = sizes[0]
    for count, size in enumerate(sizes):
        low, high = min(low, size), max(high, size)
        if high > GROUP_RATIO * low + GROUP_SLACK:
            return count
    return len(sizes)
