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
class DecodeMetadata:
    """What each decode may see: `context_lens` is [rows], tokens; `block_table` is [rows, blocks];
    int32.
    """

    context_lens: torch.Tensor
    block_table: torch.Tensor

    @classmethod
    def of(cls, plan: ForwardPlan, cache: KVCache, device: torch.device) -> "DecodeMetadata":
        """Make them for the decodes of a step, and padding among them."""
        width = max((len(group.block_table[0]) for group in plan.groups), default=1)
        context_lens = np.ones(plan.num_decodes, np.int32)
        block_table = np.full((plan.num_decodes, width), cache.scratch_block, np.int32)
        for group in plan.groups:
            context_lens[group.start : group.stop] = group.context_lens
            block_table[group.start : group.stop, : len(group.block_table[0])] = group.block_table
        return cls(to_device(context_lens, device), to_device(block_table, device))

    def on(self, device: torch.device) -> "DecodeMetadata":
        """The same for layers on another device."""
        return DecodeMetadata(send(self.context_lens, device), send(self.block_table, device))


@dataclass(frozen=True, slots=True)
class Gathered:
    """Where the tokens lie that all sequences see, one sequence after another.

    `query_start_loc` is [sequences + 1], int32; `block` and `offset` are [tokens seen by all].
    """

    query_start_loc: torch.Tensor
    block: torch.Tensor
    offset: torch.Tensor


@dataclass(frozen=True, slots=True)
class VarlenMetadata:
    """Which rows are whose, and what they may see; all int32.

    `query_start_loc` is [sequences + 1], the first row of each; `seq_lens` is [sequences], the
    tokens that its last row sees; `block_table` is [sequences, blocks]. `max_rows` and
    `max_seq_len` are their largest.
    """

    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    max_rows: int
    max_seq_len: int
    gathered: Gathered | None = None

    @classmethod
    def of(
        cls, plan: ForwardPlan, cache: KVCache, kernel: Kernel, *, with_decodes: bool = True
    ) -> "VarlenMetadata":
        """Make them for a step; each row of padding is a sequence of its own."""
        rows: list[int] = []
        seq_lens: list[int] = []
        block_table: list[list[int]] = []
        for group in plan.groups if with_decodes else ():
            rows += [1] * (group.stop - group.start)
            seq_lens += group.context_lens
            block_table += group.block_table
        for chunk in plan.chunks:
            rows.append(chunk.stop - chunk.start)
            seq_lens.append(chunk.context_len)
            block_table.append(chunk.block_table)
        first = 0 if with_decodes else plan.num_decodes
        padding = len(plan.token_ids) - first - sum(rows)
        rows += [1] * padding
        seq_lens += [1] * padding
        block_table += [[cache.scratch_block]] * padding
        width = max(map(len, block_table))
        table = [
            block_ids + [cache.scratch_block] * (width - len(block_ids))
            for block_ids in block_table
        ]
        metadata = cls(_starts(rows), _ints(seq_lens), _ints(table), max(rows), max(seq_lens))
        return metadata._gather(cache.block_size) if kernel is Kernel.GATHERED else metadata

    def _gather(self, block_size: int) -> "VarlenMetadata":
        """Find the places of all tokens that are seen, in one go."""
        position = torch.arange(self.max_seq_len)
        is_seen = position < self.seq_lens[:, None]
        block = self.block_table.long()[:, position // block_size][is_seen]
        offset = (position % block_size).expand_as(is_seen)[is_seen]
        return replace(self, gathered=Gathered(_starts(self.seq_lens.tolist()), block, offset))

    def on(self, device: torch.device) -> "VarlenMetadata":
        """The same for layers on another device."""
        query_start_loc, seq_lens, block_table = (
            send(tensor, device)
            for tensor in (self.query_start_loc, self.seq_lens, self.block_table)
        )
        gathered = self.gathered
        if gathered is not None:
            gathered = Gathered(
                *(
                    send(tensor, device)
                    for tensor in (gathered.query_start_loc, gathered.block, gathered.offset)
                )
            )
        return replace(
            self,
            query_start_loc=query_start_loc,
            seq_lens=seq_lens,
            block_table=block_table,
            gathered=gathered,
        )


def attend_varlen(
    tables: VarlenMetadata,
    cache: KVCache,
    layer: int,
    query: torch.Tensor,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """Attend to what the cache holds; query and result are [tokens, heads, dim]."""
    from torch.nn.attention.varlen import varlen_attn

    kv_heads = cache.shapes[layer].kv_heads
    keys, values = (_pages(cached[layer], kv_heads) for cached in (cache.keys, cache.values))
    paging: dict[str, Any]
    if tables.gathered is None:
        query_start_loc = None
        # More splits would make a result depend on the rest of the batch.
        paging = {"seqused_k": tables.seq_lens, "block_table": tables.block_table, "num_splits": 1}
    else:
        query_start_loc, places = (
            tables.gathered.query_start_loc,
            (tables.gathered.block, tables.gathered.offset),
        )
        keys, values, paging = keys[places], values[places], {}
    out = varlen_attn(
        query,
        keys,
        values,
        tables.query_start_loc,
        query_start_loc,
        tables.max_rows,
        tables.max_seq_len,
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
