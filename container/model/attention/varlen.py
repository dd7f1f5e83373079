"""Attention by torch's variable-length kernels (CUDA).

`torch.nn.attention.varlen.varlen_attn` takes all tokens of a step in one row, as the plan has them.
With FlashAttention 3 (Hopper, package flash-attn-3) it reads the paged cache where it lies, by a
table of blocks for each sequence. FlashAttention 2, which torch brings along, wants keys and values
side by side, so they are gathered first. Either stands in for the reference of
container.model.attention.paged only where it has computed the same at start
(container.model.loading.attention_backend); both need a GPU and a format of 16 bits.
"""

from dataclasses import dataclass, replace
from enum import Enum
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch

from container.model.async_copy import send, to_device
from container.model.forward_batch import ForwardPlan
from container.model.kv_cache.cache import KVCache


class Kernel(Enum):
    """Which code attends to a paged cache."""

    REFERENCE = "reference"
    PAGED = "torch's kernel on the paged cache"
    GATHERED = "torch's kernel on gathered keys and values"
    TRITON = "our kernel for decodes"


class AttentionKernels(NamedTuple):
    """What attends to the decodes of a step, and to its chunks: the same, unless it is TRITON."""

    decodes: Kernel = Kernel.REFERENCE
    chunks: Kernel = Kernel.REFERENCE


REFERENCE_ONLY = AttentionKernels()


@dataclass(frozen=True, slots=True)
class DecodeTables:
    """What each decode may see: `seen` is [rows], tokens; `blocks` is [rows, blocks]; int32."""

    seen: torch.Tensor
    blocks: torch.Tensor

    @classmethod
    def of(cls, plan: ForwardPlan, cache: KVCache, device: torch.device) -> "DecodeTables":
        """Make them for the decodes of a step, and padding among them."""
        width = max((len(group.blocks[0]) for group in plan.groups), default=1)
        seen = np.ones(plan.num_decodes, np.int32)
        blocks = np.full((plan.num_decodes, width), cache.scratch_block, np.int32)
        for group in plan.groups:
            seen[group.start : group.stop] = group.context_lens
            blocks[group.start : group.stop, : len(group.blocks[0])] = group.blocks
        return cls(to_device(seen, device), to_device(blocks, device))

    def on(self, device: torch.device) -> "DecodeTables":
        """The same for layers on another device."""
        return DecodeTables(send(self.seen, device), send(self.blocks, device))


@dataclass(frozen=True, slots=True)
class Gathered:
    """Where the tokens lie that all sequences see, one sequence after another.

    `starts` is [sequences + 1], int32; `block` and `offset` are [tokens seen by all].
    """

    starts: torch.Tensor
    block: torch.Tensor
    offset: torch.Tensor


@dataclass(frozen=True, slots=True)
class VarlenTables:
    """Which rows are whose, and what they may see; all int32.

    `starts` is [sequences + 1], the first row of each; `used` is [sequences], the tokens that its
    last row sees; `blocks` is [sequences, blocks]. `max_rows` and `max_used` are their largest.
    """

    starts: torch.Tensor
    used: torch.Tensor
    blocks: torch.Tensor
    max_rows: int
    max_used: int
    gathered: Gathered | None = None

    @classmethod
    def of(
        cls, plan: ForwardPlan, cache: KVCache, kernel: Kernel, *, with_decodes: bool = True
    ) -> "VarlenTables":
        """Make them for a step; each row of padding is a sequence of its own."""
        rows: list[int] = []
        used: list[int] = []
        blocks: list[list[int]] = []
        for group in plan.groups if with_decodes else ():
            rows += [1] * (group.stop - group.start)
            used += group.context_lens
            blocks += group.blocks
        for chunk in plan.chunks:
            rows.append(chunk.stop - chunk.start)
            used.append(chunk.context_len)
            blocks.append(chunk.blocks)
        first = 0 if with_decodes else plan.num_decodes
        padding = len(plan.token_ids) - first - sum(rows)
        rows += [1] * padding
        used += [1] * padding
        blocks += [[cache.scratch_block]] * padding
        width = max(map(len, blocks))
        table = [one + [cache.scratch_block] * (width - len(one)) for one in blocks]
        made = cls(_starts(rows), _ints(used), _ints(table), max(rows), max(used))
        return made._gather(cache.block_size) if kernel is Kernel.GATHERED else made

    def _gather(self, block_size: int) -> "VarlenTables":
        """Find the places of all tokens that are seen, in one go."""
        place = torch.arange(self.max_used)
        is_seen = place < self.used[:, None]
        block = self.blocks.long()[:, place // block_size][is_seen]
        offset = (place % block_size).expand_as(is_seen)[is_seen]
        return replace(self, gathered=Gathered(_starts(self.used.tolist()), block, offset))

    def on(self, device: torch.device) -> "VarlenTables":
        """The same for layers on another device."""
        starts, used, blocks = (send(one, device) for one in (self.starts, self.used, self.blocks))
        gathered = self.gathered
        if gathered is not None:
            gathered = Gathered(
                *(send(one, device) for one in (gathered.starts, gathered.block, gathered.offset))
            )
        return replace(self, starts=starts, used=used, blocks=blocks, gathered=gathered)


def attend_varlen(
    tables: VarlenTables,
    cache: KVCache,
    layer: int,
    query: torch.Tensor,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """Attend to what the cache holds; query and result are [tokens, heads, dim]."""
    from torch.nn.attention.varlen import varlen_attn

    kv_heads = cache.shapes[layer].kv_heads
    keys, values = (_pages(one[layer], kv_heads) for one in (cache.keys, cache.values))
    paging: dict[str, Any]
    if tables.gathered is None:
        starts = None
        # More splits would make a result depend on the rest of the batch.
        paging = {"seqused_k": tables.used, "block_table": tables.blocks, "num_splits": 1}
    else:
        starts, places = tables.gathered.starts, (tables.gathered.block, tables.gathered.offset)
        keys, values, paging = keys[places], values[places], {}
    out = varlen_attn(
        query,
        keys,
        values,
        tables.starts,
        starts,
        tables.max_rows,
        tables.max_used,
        scale=scale,
        # Both ends of torch's window are beside the token itself.
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != kv_heads,
        **paging,
    )
    assert isinstance(out, torch.Tensor), "nothing was asked for besides"
    return out


def _pages(cache: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """View [blocks * kv_heads, block_size, dim] as [blocks, block_size, kv_heads, dim]."""
    return cache.unflatten(0, (-1, kv_heads)).transpose(1, 2)


def _ints(values: list[int] | list[list[int]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _starts(counts: list[int]) -> torch.Tensor:
    """Where each of several runs begins, and where the last one ends."""
    return _ints([0, *accumulate(counts)])
