"""Attention metadata: where each token of a step is stored, and what it sees."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from container.model.async_copy import send, to_device
from container.model.attention.paged import TILE
from container.model.attention.varlen import DecodeTables, VarlenTables
from container.model.forward_batch import ForwardPlan
from container.model.kv_cache.cache import KVCache

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Sequences with one query token each, in rows `start` to `stop`.

    `blocks` is [sequences, blocks], padded with the scratch block; `context_lens` is [sequences].
    """

    start: int
    stop: int
    blocks: torch.Tensor
    context_lens: torch.Tensor


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompt tokens of one sequence, in rows `start` to `stop`; `blocks` is [1, blocks]."""

    start: int
    stop: int
    context_len: int
    blocks: torch.Tensor


@dataclass(slots=True)
class PagedStep:
    """Where each token of a step is written and what it may see.

    `slots` is [tokens]: block id * block size + offset. `decodes`: what our kernel for decodes is
    told, and `varlen` torch's kernel for the other rows, where these serve. `has_adapters`: some
    rows have one.
    """

    cache: KVCache
    slots: torch.Tensor
    groups: list[DecodeGroup]
    chunks: list[Chunk]
    varlen: VarlenTables | None = None
    has_adapters: bool = False
    decodes: DecodeTables | None = None
    _memo: dict[tuple[object, ...], Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        plan: ForwardPlan,
        cache: KVCache,
        device: torch.device,
        varlen: VarlenTables | None = None,
        decodes: DecodeTables | None = None,
    ) -> "PagedStep":
        """Make the tensors of a plan."""

        def ints(values: list[int] | list[list[int]]) -> torch.Tensor:
            return to_device(values, device)

        groups = [
            DecodeGroup(one.start, one.stop, ints(one.blocks), ints(one.context_lens))
            for one in plan.groups
        ]
        chunks = [
            Chunk(one.start, one.stop, one.context_len, ints([one.blocks])) for one in plan.chunks
        ]
        tables = varlen.on(device) if varlen is not None else None
        return cls(cache, ints(plan.slots), groups, chunks, tables, plan.has_adapters, decodes)

    def remember(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        """Make something once for all layers."""
        if key not in self._memo:
            self._memo[key] = make()
        made: T = self._memo[key]
        return made

    def on(self, device: torch.device) -> "PagedStep":
        """The same step for layers on another device."""
        if self.slots.device == device:
            return self

        def make() -> PagedStep:
            groups = [
                DecodeGroup(
                    one.start, one.stop, send(one.blocks, device), send(one.context_lens, device)
                )
                for one in self.groups
            ]
            chunks = [replace(one, blocks=send(one.blocks, device)) for one in self.chunks]
            varlen = self.varlen.on(device) if self.varlen is not None else None
            decodes = self.decodes.on(device) if self.decodes is not None else None
            slots, has_adapters = send(self.slots, device), self.has_adapters
            return PagedStep(self.cache, slots, groups, chunks, varlen, has_adapters, decodes)

        return self.remember(("device", device), make)

    def slot_rows(self, kv_heads: int) -> torch.Tensor:
        """Rows of the flat cache for each head of each token: [tokens, kv_heads]."""

        def make() -> torch.Tensor:
            block_size = self.cache.block_size
            block, offset = self.slots[:, None] // block_size, self.slots[:, None] % block_size
            heads = torch.arange(kv_heads, device=self.slots.device)
            return (block * kv_heads + heads) * block_size + offset

        return self.remember(("slots", kv_heads), make)

    def block_rows(self, part: DecodeGroup | Chunk, kv_heads: int) -> torch.Tensor:
        """Rows of the cache for each head of each block: [sequences * kv_heads * blocks]."""

        def make() -> torch.Tensor:
            heads = torch.arange(kv_heads, device=part.blocks.device)[None, :, None]
            return (part.blocks[:, None, :] * kv_heads + heads).flatten()

        return self.remember(("blocks", part.start, kv_heads), make)

    def decode_bias(
        self, group: DecodeGroup, window: int | None, kv_heads: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """0 where a token may be seen, else -inf: [sequences * kv_heads, 1, positions]."""

        def make() -> torch.Tensor:
            length = group.blocks.shape[1] * self.cache.block_size
            position = torch.arange(length, device=group.blocks.device)[None, :]
            hidden = position >= group.context_lens[:, None]
            if window is not None:
                hidden |= position < (group.context_lens - window)[:, None]
            bias = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            return bias.masked_fill_(hidden, float("-inf")).repeat_interleave(kv_heads, 0)[:, None]

        return self.remember(("bias", group.start, window, kv_heads, dtype), make)

    def chunk_mask(self, chunk: Chunk, window: int | None) -> torch.Tensor:
        """True where a token may be seen: [queries, positions]."""

        def make() -> torch.Tensor:
            count = chunk.stop - chunk.start
            first = chunk.context_len - count
            query = torch.arange(first, chunk.context_len, device=chunk.blocks.device)[:, None]
            length = chunk.blocks.shape[1] * self.cache.block_size
            position = torch.arange(length, device=chunk.blocks.device)[None, :]
            seen = position <= query
            return seen & (position > query - window) if window is not None else seen

        return self.remember(("mask", chunk.start, window), make)

    def tile_mask(self, before: int, window: int | None) -> torch.Tensor:
        """True where a key may be seen by a tile of TILE queries: [TILE, before + TILE].

        Query i is at position `before + i` of the keys.
        """

        def make() -> torch.Tensor:
            query = before + torch.arange(TILE)[:, None]
            position = torch.arange(before + TILE)[None, :]
            seen = position <= query
            return seen & (position > query - window) if window is not None else seen

        return self.remember(("tile", before, window), make)


@dataclass(frozen=True, slots=True)
class Rule:
    """How one layer weighs what it sees, and for how many query heads."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    heads: int = 0

    @classmethod
    def of(
        cls,
        query: torch.Tensor,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **_: object,
    ) -> "Rule":
        """Take it from what a model gives to its attention."""
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        return cls(scale, sliding_window, softcap, query.shape[1])
