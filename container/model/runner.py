"""The runner: makes tensors from a batch, runs one forward pass, samples. Nothing else.

Owned by the engine's loop. Rows of the forward pass: decodes sorted by context, then chunks.
"""

import torch

from container.engine.batch import Batch, Sampled, Scheduled
from container.model.attention import Chunk, DecodeGroup, PagedStep
from container.model.kv_cache import KVCache
from container.model.sampler import sample

# Products of one row and of several round differently in float32; two rows are the smallest batch
# whose results do not depend on the rest of the batch (measured, see docs/LOG.md).
MIN_ROWS = 2
# Contexts within this ratio share a group; gathering pads each to the longest.
GROUP_RATIO = 1.5
GROUP_SLACK = 4


class TorchModelRunner:
    """Implements the engine's ModelRunner for a transformers causal language model."""

    def __init__(self, model: torch.nn.Module, cache: KVCache, device: torch.device) -> None:
        self._model = model
        self._cache = cache
        self._device = device

    def execute(self, batch: Batch) -> list[Sampled]:
        """Run one step; one token for each item that samples, in the batch's order."""
        decodes = [item for item in batch.items if item.num_tokens == 1]
        decodes.sort(key=lambda item: item.end)
        ordered = decodes + [item for item in batch.items if item.num_tokens > 1]
        sampling = [item for item in batch.items if item.samples]
        with torch.inference_mode():
            logits = self.logits(ordered, sampling)
            return sample(logits, [item.sequence for item in sampling]) if sampling else []

    def logits(self, items: list[Scheduled], wanted: list[Scheduled]) -> torch.Tensor:
        """Run one forward pass, decodes first; return [wanted, vocabulary] in float32."""
        num_decodes = sum(item.num_tokens == 1 for item in items)
        token_ids: list[int] = []
        positions: list[int] = []
        last_row: dict[int, int] = {}
        for item in items:
            start = item.sequence.num_computed
            token_ids += item.sequence.token_ids[start : item.end]
            positions += range(start, item.end)
            last_row[id(item)] = len(token_ids) - 1
        padding = max(0, MIN_ROWS - len(token_ids))
        rows = [last_row[id(item)] for item in wanted]
        rows += [0] * max(0, MIN_ROWS - len(rows))
        output = self._model(
            input_ids=self._tensor(token_ids + [0] * padding)[None],
            position_ids=self._tensor(positions + [0] * padding)[None],
            use_cache=False,
            logits_to_keep=self._tensor(rows),
            step=self._plan(items, num_decodes, padding),
        )
        logits: torch.Tensor = output.logits[0, : len(wanted)]
        return logits.float()

    def _plan(self, items: list[Scheduled], num_decodes: int, padding: int) -> PagedStep:
        size = self._cache.block_size
        slots: list[int] = []
        for item in items:
            table = item.sequence.block_table
            slots += [
                table[position // size] * size + position % size
                for position in range(item.sequence.num_computed, item.end)
            ]
        slots += [self._cache.scratch_block * size] * padding
        chunks = []
        row = num_decodes
        for item in items[num_decodes:]:
            blocks = self._block_tensor([item], self._num_blocks(item))
            chunks.append(Chunk(row, row + item.num_tokens, item.end, blocks))
            row += item.num_tokens
        groups = self._groups(items[:num_decodes])
        return PagedStep(self._cache, self._tensor(slots), groups, chunks)

    def _groups(self, decodes: list[Scheduled]) -> list[DecodeGroup]:
        groups = []
        start = 0
        while start < len(decodes):
            limit = GROUP_RATIO * self._num_blocks(decodes[start]) + GROUP_SLACK
            stop = start + 1
            while stop < len(decodes) and self._num_blocks(decodes[stop]) <= limit:
                stop += 1
            members = decodes[start:stop]
            blocks = self._block_tensor(members, self._num_blocks(members[-1]))
            lens = self._tensor([item.end for item in members])
            groups.append(DecodeGroup(start, stop, blocks, lens))
            start = stop
        return groups

    def _num_blocks(self, item: Scheduled) -> int:
        return -(-item.end // self._cache.block_size)

    def _block_tensor(self, items: list[Scheduled], width: int) -> torch.Tensor:
        scratch = self._cache.scratch_block
        tables = [item.sequence.block_table[:width] for item in items]
        return self._tensor([table + [scratch] * (width - len(table)) for table in tables])

    def _tensor(self, values: list[int] | list[list[int]]) -> torch.Tensor:
        return torch.tensor(values, device=self._device)
