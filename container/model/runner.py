"""The runner: makes tensors from a batch, runs one forward pass, samples. Nothing else.

Owned by the engine's loop. Rows of the forward pass: decodes sorted by context, then chunks. A
token of a draft is a decode of its own, so that it rounds as it would have without the draft.
"""

from dataclasses import dataclass

import torch

from container.engine.adapters import BASE
from container.engine.batch import Batch, Scheduled, StepOutput
from container.engine.sequence import Sequence
from container.model.attention import Chunk, DecodeGroup, PagedStep
from container.model.int8 import RowKinds
from container.model.kv_cache import KVCache
from container.model.lora import Updates
from container.model.sampler import Sampler

# Products of one row and of several round differently in float32; two rows are the smallest batch
# whose results do not depend on the rest of the batch (measured, see docs/LOG.md).
MIN_ROWS = 2
# Contexts within this ratio share a group; gathering pads each to the longest.
GROUP_RATIO = 1.5
GROUP_SLACK = 4


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens of one item that lie side by side: a chunk, or one token of a decode or its draft."""

    item: Scheduled
    start: int
    ids: list[int]

    @property
    def end(self) -> int:
        return self.start + len(self.ids)

    @property
    def table(self) -> list[int]:
        return self.item.sequence.block_table


class TorchModelRunner:
    """Implements the engine's ModelRunner for a transformers causal language model."""

    def __init__(
        self,
        model: torch.nn.Module,
        cache: KVCache,
        device: torch.device,
        *,
        end_token_ids: frozenset[int] = frozenset(),
        updates: Updates | None = None,
        kinds: RowKinds | None = None,
    ) -> None:
        self._kinds = kinds
        self._model = model
        self._cache = cache
        self._device = device
        self._sampler = Sampler(end_token_ids)
        self._updates = updates

    def execute(self, batch: Batch) -> StepOutput:
        """Run one step."""
        sampling = [item for item in batch.items if item.samples]
        scoring = [item for item in batch.items if item.num_prompt_logprobs]
        with torch.inference_mode():
            sequences = _sampled_sequences(sampling)
            logits = self.logits(list(batch.items), sampling, scoring)
            count = len(sequences)
            sampled = self._sampler.sample(logits[:count], sequences) if sequences else []
            scores = _score_prompts(scoring, logits[count:])
        place = {id(item): index for index, item in enumerate(batch.items)}
        return StepOutput(sampled, {place[id(item)]: told for item, told in scores})

    def logits(
        self,
        items: list[Scheduled],
        sampling: list[Scheduled],
        scoring: list[Scheduled],
    ) -> torch.Tensor:
        """Run one forward pass; return logits [rows, vocabulary] in float32.

        Rows: of each sampling item the last known token and its draft, then of each scoring item
        all those that a prompt token follows.
        """
        decodes, chunks = _pieces(items)
        token_ids: list[int] = []
        positions: list[int] = []
        first_row: dict[tuple[int, int], int] = {}
        for piece in decodes + chunks:
            first_row[id(piece.item), piece.start] = len(token_ids)
            token_ids += piece.ids
            positions += range(piece.start, piece.end)
        padding = max(0, MIN_ROWS - len(token_ids))
        if self._updates is not None:
            adapters = [(piece.item.sequence.adapter, len(piece.ids)) for piece in decodes + chunks]
            self._updates.begin([*adapters, (BASE, padding)])
        rows: list[int] = []
        for item in sampling:
            start = item.sequence.num_computed
            rows.append(first_row[id(item), start] + item.num_tokens - 1)
            rows += [first_row[id(item), start + 1 + i] for i in range(len(item.draft))]
        for item in scoring:
            first = first_row[id(item), item.sequence.num_computed]
            rows += range(first, first + item.num_prompt_logprobs)
        num_rows = len(rows)
        rows += [0] * max(0, MIN_ROWS - num_rows)
        if self._kinds is not None:
            self._kinds.num_decodes = len(decodes) if chunks else len(token_ids) + padding
        output = self._model(
            input_ids=self._tensor(token_ids + [0] * padding)[None],
            position_ids=self._tensor(positions + [0] * padding)[None],
            use_cache=False,
            logits_to_keep=self._tensor(rows),
            step=self._plan(decodes, chunks, padding),
        )
        logits: torch.Tensor = output.logits[0, :num_rows]
        return logits.float()

    def _plan(self, decodes: list[_Piece], chunks: list[_Piece], padding: int) -> PagedStep:
        size = self._cache.block_size
        slots: list[int] = []
        for piece in decodes + chunks:
            table = piece.table
            slots += [
                table[position // size] * size + position % size
                for position in range(piece.start, piece.end)
            ]
        slots += [self._cache.scratch_block * size] * padding
        parts = []
        row = len(decodes)
        for piece in chunks:
            blocks = self._block_tensor([piece], self._num_blocks(piece))
            parts.append(Chunk(row, row + len(piece.ids), piece.end, blocks))
            row += len(piece.ids)
        return PagedStep(self._cache, self._tensor(slots), self._groups(decodes), parts)

    def _groups(self, decodes: list[_Piece]) -> list[DecodeGroup]:
        groups = []
        start = 0
        while start < len(decodes):
            limit = GROUP_RATIO * self._num_blocks(decodes[start]) + GROUP_SLACK
            stop = start + 1
            while stop < len(decodes) and self._num_blocks(decodes[stop]) <= limit:
                stop += 1
            members = decodes[start:stop]
            blocks = self._block_tensor(members, self._num_blocks(members[-1]))
            lens = self._tensor([piece.end for piece in members])
            groups.append(DecodeGroup(start, stop, blocks, lens))
            start = stop
        return groups

    def _num_blocks(self, piece: _Piece) -> int:
        return -(-piece.end // self._cache.block_size)

    def _block_tensor(self, pieces: list[_Piece], width: int) -> torch.Tensor:
        scratch = self._cache.scratch_block
        tables = [piece.table[:width] for piece in pieces]
        return self._tensor([table + [scratch] * (width - len(table)) for table in tables])

    def _tensor(self, values: list[int] | list[list[int]]) -> torch.Tensor:
        return torch.tensor(values, device=self._device)


def _pieces(items: list[Scheduled]) -> tuple[list[_Piece], list[_Piece]]:
    """The decodes, sorted by context, and the chunks."""
    decodes: list[_Piece] = []
    chunks: list[_Piece] = []
    for item in items:
        start = item.sequence.num_computed
        ids = item.sequence.token_ids[start : item.end]
        if item.is_decode:
            # A token of a draft sees those before it: all are stored before any is attended to.
            ids += item.draft
            decodes += [_Piece(item, start + i, [token_id]) for i, token_id in enumerate(ids)]
        else:
            chunks.append(_Piece(item, start, ids))
    decodes.sort(key=lambda piece: piece.end)
    return decodes, chunks


def _sampled_sequences(sampling: list[Scheduled]) -> list[Sequence]:
    """What each row of sampled logits belongs to: a sequence, or what its draft makes of it."""
    sequences = []
    for item in sampling:
        sequences.append(item.sequence)
        sequences += [item.sequence.ahead(item.draft[: i + 1]) for i in range(len(item.draft))]
    return sequences


def told_logprobs(logits: torch.Tensor, following: list[int]) -> list[float]:
    """The model's own log-probability of the token that follows each row of logits."""
    ids = torch.tensor(following, device=logits.device)
    told: list[float] = logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0].tolist()
    return told


def _score_prompts(
    scoring: list[Scheduled], logits: torch.Tensor
) -> list[tuple[Scheduled, list[float]]]:
    """The log-probability of each prompt token that follows a computed one."""
    told = []
    row = 0
    for item in scoring:
        count, first = item.num_prompt_logprobs, item.sequence.num_computed + 1
        following = item.sequence.token_ids[first : first + count]
        told.append((item, told_logprobs(logits[row : row + count], following)))
        row += count
    return told
