"""The runner: makes tensors from a batch, runs one forward pass, samples. Nothing else.

Owned by the engine's loop. Rows of the forward pass: decodes sorted by context, then chunks.
"""

import torch

from container.engine.batch import Batch, Scheduled, StepOutput
from container.model.attention import Chunk, DecodeGroup, PagedStep
from container.model.kv_cache import KVCache
from container.model.sampler import Sampler

# Products of one row and of several round differently in float32; two rows are the smallest batch
# whose results do not depend on the rest of the batch (measured, see docs/LOG.md).
MIN_ROWS = 2
# Contexts within this ratio share a group; gathering pads each to the longest.
GROUP_RATIO = 1.5
GROUP_SLACK = 4


class TorchModelRunner:
    """Implements the engine's ModelRunner for a transformers causal language model."""

    def __init__(
        self,
        model: torch.nn.Module,
        cache: KVCache,
        device: torch.device,
        *,
        end_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._model = model
        self._cache = cache
        self._device = device
        self._sampler = Sampler(end_token_ids)

    def execute(self, batch: Batch) -> StepOutput:
        """Run one step."""
        decodes = [item for item in batch.items if item.is_decode]
        decodes.sort(key=lambda item: item.end)
        ordered = decodes + [item for item in batch.items if not item.is_decode]
        sampling = [item for item in batch.items if item.samples]
        scoring = [item for item in batch.items if item.num_prompt_logprobs]
        with torch.inference_mode():
            logits = self.logits(ordered, sampling, scoring)
            sequences = [item.sequence for item in sampling]
            sampled = self._sampler.sample(logits[: len(sampling)], sequences) if sampling else []
            scores = _score_prompts(scoring, logits[len(sampling) :])
        place = {id(item): index for index, item in enumerate(batch.items)}
        return StepOutput(sampled, {place[id(item)]: told for item, told in scores})

    def logits(
        self,
        items: list[Scheduled],
        sampling: list[Scheduled],
        scoring: list[Scheduled],
    ) -> torch.Tensor:
        """Run one forward pass, decodes first; return logits [rows, vocabulary] in float32.

        Rows: the last token of each sampling item, then of each scoring item all those that a
        prompt token follows.
        """
        num_decodes = sum(item.is_decode for item in items)
        token_ids: list[int] = []
        positions: list[int] = []
        first_row: dict[int, int] = {}
        for item in items:
            start = item.sequence.num_computed
            first_row[id(item)] = len(token_ids)
            token_ids += item.sequence.token_ids[start : item.end]
            positions += range(start, item.end)
        padding = max(0, MIN_ROWS - len(token_ids))
        rows = [first_row[id(item)] + item.num_tokens - 1 for item in sampling]
        for item in scoring:
            rows += range(first_row[id(item)], first_row[id(item)] + item.num_prompt_logprobs)
        num_rows = len(rows)
        rows += [0] * max(0, MIN_ROWS - num_rows)
        output = self._model(
            input_ids=self._tensor(token_ids + [0] * padding)[None],
            position_ids=self._tensor(positions + [0] * padding)[None],
            use_cache=False,
            logits_to_keep=self._tensor(rows),
            step=self._plan(items, num_decodes, padding),
        )
        logits: torch.Tensor = output.logits[0, :num_rows]
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
