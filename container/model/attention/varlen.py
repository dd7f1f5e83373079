"""Attention by torch's variable-length kernels (CUDA).

`torch.nn.attention.varlen.varlen_attn` takes all tokens of a step in one row, as the plan lays them
out. With FlashAttention 3 (Hopper, package flash-attn-3) it reads the paged cache in place, by a
block table for each sequence. FlashAttention 2, which torch includes, needs contiguous keys and
values, so they are gathered first. Either replaces the reference of container.model.attention.paged
only after a check at start has shown equal results (container.model.loading.attention_backend);
both need a GPU and a 16-bit format.
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
from container.model.torch_versions import takes


class Kernel(Enum):
    """The implementation of attention over a paged cache."""

    REFERENCE = "reference"
    PAGED = "torch's kernel on the paged cache"
    GATHERED = "torch's kernel on gathered keys and values"
    TRITON = "our kernel for decodes"


class AttentionKernels(NamedTuple):
    """The kernels of a step's decodes and of its chunks: equal, unless decodes use TRITON."""

    decodes: Kernel = Kernel.REFERENCE
    chunks: Kernel = Kernel.REFERENCE


REFERENCE_ONLY = AttentionKernels()


@dataclass(frozen=True, slots=True)
class DecodeMetadata:
    """Context of each decode: `context_lens`, [rows] in tokens, and `block_table`, [rows, blocks].

    Both are int32.
    """

    context_lens: torch.Tensor
    block_table: torch.Tensor

    @classmethod
    def of(cls, plan: ForwardPlan, cache: KVCache, device: torch.device) -> "DecodeMetadata":
        """Create the tensors for a step's decodes, padding rows included."""
        width = max((len(group.block_table[0]) for group in plan.groups), default=1)
        context_lens = np.ones(plan.num_decodes, np.int32)
        block_table = np.full((plan.num_decodes, width), cache.scratch_block, np.int32)
        for group in plan.groups:
            context_lens[group.start : group.stop] = group.context_lens
            block_table[group.start : group.stop, : len(group.block_table[0])] = group.block_table
        return cls(to_device(context_lens, device), to_device(block_table, device))

    def on(self, device: torch.device) -> "DecodeMetadata":
        """Return the same metadata for layers on another device."""
        return DecodeMetadata(send(self.context_lens, device), send(self.block_table, device))


@dataclass(frozen=True, slots=True)
class Gathered:
    """Cache positions of the context tokens of all sequences, one sequence after another.

    `query_start_loc` is [sequences + 1], int32, and counts context tokens; `block` and `offset` are
    [context tokens of all sequences].
    """

    query_start_loc: torch.Tensor
    block: torch.Tensor
    offset: torch.Tensor


@dataclass(frozen=True, slots=True)
class VarlenMetadata:
    """The rows of each sequence and its context; all int32.

    `query_start_loc` is [sequences + 1], the first row of each; `seq_lens` is [sequences], the
    context length of its last row; `block_table` is [sequences, blocks]. `max_rows` and
    `max_seq_len` are the largest number of rows and context length.
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
        """Create the tensors for a step; each padding row is one sequence."""
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
        """Add the cache positions of all context tokens."""
        position = torch.arange(self.max_seq_len)
        is_visible = position < self.seq_lens[:, None]
        block = self.block_table.long()[:, position // block_size][is_visible]
        offset = (position % block_size).expand_as(is_visible)[is_visible]
        return replace(self, gathered=Gathered(_starts(self.seq_lens.tolist()), block, offset))

    def on(self, device: torch.device) -> "VarlenMetadata":
        """Return the same metadata for layers on another device."""
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
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend to the paged cache; query and result are [tokens, heads, dim], `sinks` [heads].

    The kernel knows no sinks; its weights are scaled by the share of the softmax that they leave.
    """
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    kv_heads = cache.shapes[layer].kv_heads
    keys, values = (_pages(cached[layer], kv_heads) for cached in (cache.keys, cache.values))
    paging: dict[str, Any]
    if tables.gathered is None:
        query_start_loc = None
        # With more splits a result would depend on the rest of the batch.
        paging = {"seqused_k": tables.seq_lens, "block_table": tables.block_table, "num_splits": 1}
    else:
        query_start_loc, positions = (
            tables.gathered.query_start_loc,
            (tables.gathered.block, tables.gathered.offset),
        )
        keys, values, paging = keys[positions], values[positions], {}
    if takes(varlen_attn, "enable_gqa"):  # 2.11 has it for all calls
        paging["enable_gqa"] = query.shape[1] != kv_heads
    count = len(query)
    if sinks is not None and count == query.shape[1]:
        # One more row, of no sequence, tells the two orders of the log-sum-exp below apart.
        query = torch.nn.functional.pad(query, (0, 0, 0, 0, 0, 1))
    out = varlen_attn(
        query,
        keys,
        values,
        tables.query_start_loc,
        query_start_loc,
        tables.max_rows,
        tables.max_seq_len,
        scale=scale,
        # torch's window counts the tokens before and after the query, without the query itself.
        window_size=(-1 if window is None else window - 1, 0),
        return_aux=None if sinks is None else AuxRequest(lse=True),
        **paging,
    )
    if sinks is None:
        assert isinstance(out, torch.Tensor), "varlen_attn returned more than the output"
        return out
    out, log_sum_exp = out
    if log_sum_exp.shape == (out.shape[1], out.shape[0]):  # so FlashAttention has it
        log_sum_exp = log_sum_exp.t()
    weight = (log_sum_exp[:count].float() - sinks.float()).sigmoid()
    return (out[:count] * weight[..., None]).to(out.dtype)


def _pages(cache: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """View [blocks * kv_heads, block_size, dim] as [blocks, block_size, kv_heads, dim]."""
    return cache.unflatten(0, (-1, kv_heads)).transpose(1, 2)


def _ints(values: list[int] | list[list[int]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _starts(counts: list[int]) -> torch.Tensor:
    """Return the start of each run of these lengths, and the end of the last."""
    return _ints([0, *accumulate(counts)])
