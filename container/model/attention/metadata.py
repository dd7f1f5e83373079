"""Attention metadata: the slot of each token of a step, and its context."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from container.model.async_copy import send, to_device
from container.model.attention.varlen import DecodeMetadata, VarlenMetadata
from container.model.forward_batch import CrossPlan, ForwardPlan
from container.model.kv_cache.cache import KVCache

# Query rows of a prompt that a CPU takes together.
TILE = 64

T = TypeVar("T")
Position = TypeVar("Position", int, torch.Tensor)


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Sequences with one query token each, in rows `start` to `stop`.

    `block_table` is [sequences, blocks], padded with the scratch block; `context_lens` is
    [sequences].
    """

    start: int
    stop: int
    block_table: torch.Tensor
    context_lens: torch.Tensor


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompt tokens of one sequence, in rows `start` to `stop`; `block_table` is [1, blocks].

    The tokens of each of the `whole_spans` (first position, the one after the last) see each other.
    """

    start: int
    stop: int
    context_len: int
    block_table: torch.Tensor
    whole_spans: tuple[tuple[int, int], ...] = ()

    def reach(self, start: int, stop: int) -> int:
        """Return the position after the last one that tokens from `start` to `stop` see."""
        ends = [last for first, last in self.whole_spans if first < stop and last > start]
        return max([stop, *ends])

    def first_seen(self, start: int, attn_params: "AttentionParams") -> int:
        """Return the first position that the tokens from `start` on see; it may be negative."""
        begins = [first for first, last in self.whole_spans if first < start < last]
        return min([attn_params.first_visible(start), *begins])

    def show_whole(self, mask: torch.Tensor, start: int, low: int) -> torch.Tensor:
        """Return a mask [queries, keys] that shows whole spans as well.

        The queries are at positions from `start` on, the keys from `low` on.
        """
        if not self.whole_spans:
            return mask
        shown = mask.clone()
        for first, last in self.whole_spans:
            rows = slice(max(0, first - start), max(0, last - start))
            shown[rows, max(0, first - low) : max(0, last - low)] = True
        return shown


@dataclass(slots=True)
class AttentionMetadata:
    """The slot of each token of a step, and the tokens that it attends to.

    `slot_mapping` is [tokens]: block id * block size + offset. `decodes` is the metadata of our
    decode kernel and `varlen` that of torch's kernel for the other rows, where these are used.
    `has_adapters`: some rows have an adapter. `cross` is the second table of a step, that of an
    encoder's outputs.
    """

    cache: KVCache
    slot_mapping: torch.Tensor
    groups: list[DecodeGroup]
    chunks: list[Chunk]
    varlen: VarlenMetadata | None = None
    has_adapters: bool = False
    decodes: DecodeMetadata | None = None
    cross: "AttentionMetadata | None" = None
    _memo: dict[tuple[object, ...], Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        plan: ForwardPlan,
        cache: KVCache,
        device: torch.device,
        varlen: VarlenMetadata | None = None,
        decodes: DecodeMetadata | None = None,
    ) -> "AttentionMetadata":
        """Create the tensors of a plan."""

        cross = None
        if plan.cross is not None:
            stored = to_device(plan.cross.slot_mapping, device)
            cross = cls(cache, stored, *_tables_of(plan.cross, device))
        groups, chunks = _tables_of(plan, device)
        tables = varlen.on(device) if varlen is not None else None
        slot_mapping = to_device(plan.slot_mapping, device)
        return cls(cache, slot_mapping, groups, chunks, tables, plan.has_adapters, decodes, cross)

    @property
    def whole_chunks(self) -> list[Chunk]:
        """Chunks with tokens that see later ones, for which kernels have no masks."""
        return [chunk for chunk in self.chunks if chunk.whole_spans]

    def memoize(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        """Compute a value once and share it between all layers."""
        if key not in self._memo:
            self._memo[key] = make()
        value: T = self._memo[key]
        return value

    def on(self, device: torch.device) -> "AttentionMetadata":
        """Return the same step's metadata for layers on another device."""
        if self.slot_mapping.device == device:
            return self

        def make() -> AttentionMetadata:
            groups = [
                DecodeGroup(
                    group.start,
                    group.stop,
                    send(group.block_table, device),
                    send(group.context_lens, device),
                )
                for group in self.groups
            ]
            chunks = [
                replace(chunk, block_table=send(chunk.block_table, device)) for chunk in self.chunks
            ]
            varlen = self.varlen.on(device) if self.varlen is not None else None
            decodes = self.decodes.on(device) if self.decodes is not None else None
            slot_mapping, has_adapters = send(self.slot_mapping, device), self.has_adapters
            return AttentionMetadata(
                self.cache, slot_mapping, groups, chunks, varlen, has_adapters, decodes
            )

        return self.memoize(("device", device), make)

    def slot_rows(self, kv_heads: int) -> torch.Tensor:
        """Return the flat cache's row for each head of each token: [tokens, kv_heads]."""

        def make() -> torch.Tensor:
            block_size = self.cache.block_size
            block, offset = (
                self.slot_mapping[:, None] // block_size,
                self.slot_mapping[:, None] % block_size,
            )
            heads = torch.arange(kv_heads, device=self.slot_mapping.device)
            return (block * kv_heads + heads) * block_size + offset

        return self.memoize(("slots", kv_heads), make)

    def block_rows(self, part: DecodeGroup | Chunk, kv_heads: int) -> torch.Tensor:
        """Return the cache's row for each head and block: [sequences * kv_heads * blocks]."""

        def make() -> torch.Tensor:
            heads = torch.arange(kv_heads, device=part.block_table.device)[None, :, None]
            return (part.block_table[:, None, :] * kv_heads + heads).flatten()

        return self.memoize(("blocks", part.start, kv_heads), make)

    def decode_bias(
        self, group: DecodeGroup, attn_params: "AttentionParams", kv_heads: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """Return 0 for visible positions, else -inf: [sequences * kv_heads, 1, positions]."""

        def make() -> torch.Tensor:
            length = group.block_table.shape[1] * self.cache.block_size
            position = torch.arange(length, device=group.block_table.device)[None, :]
            last = (group.context_lens - 1)[:, None]
            hidden = (position > last) | (position < attn_params.first_visible(last))
            bias = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            return bias.masked_fill_(hidden, float("-inf")).repeat_interleave(kv_heads, 0)[:, None]

        return self.memoize(("bias", group.start, *attn_params.reach, kv_heads, dtype), make)

    def chunk_mask(self, chunk: Chunk, attn_params: "AttentionParams") -> torch.Tensor:
        """Return True for visible positions: [queries, positions]."""

        def make() -> torch.Tensor:
            first = chunk.context_len - (chunk.stop - chunk.start)
            query = torch.arange(first, chunk.context_len, device=chunk.block_table.device)
            length = chunk.block_table.shape[1] * self.cache.block_size
            position = torch.arange(length, device=chunk.block_table.device)
            return _visible(query[:, None], position[None, :], attn_params)

        return self.memoize(("mask", chunk.start, *attn_params.reach), make)

    def tile_mask(
        self, start: int, low: int, stop: int, attn_params: "AttentionParams"
    ) -> torch.Tensor:
        """Return True where a query of a TILE-row tile sees a key: [TILE, stop - low].

        The queries are at positions from `start` on, the keys from `low` on.
        """

        def make() -> torch.Tensor:
            query = torch.arange(start, start + TILE)[:, None]
            return _visible(query, torch.arange(low, stop)[None, :], attn_params)

        return self.memoize(("tile", start, low, stop, *attn_params.reach), make)


@dataclass(frozen=True, slots=True)
class AttentionParams:
    """Parameters of one layer's attention; `heads` is the number of query heads.

    A token sees those before it and itself: of these the last `window`, or those of its `chunk` of
    positions. `sinks` are scores of the softmax that no token has, [heads] (Xiao et al., 2024).
    `key_bias` is added to the scores of the key at each position, [heads, positions], as in ALiBi
    (Press et al., 2022). Parameters that differ in numbers of these alone are equal.
    `relative_bias` is that of a key by its distance from the query, [heads, distances], as in T5.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    heads: int = 0
    chunk: int | None = None
    sinks: torch.Tensor | None = field(default=None, compare=False, repr=False)
    key_bias: torch.Tensor | None = field(default=None, compare=False, repr=False)
    relative_bias: torch.Tensor | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        query: torch.Tensor,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        chunk: int | None = None,
        **_: object,
    ) -> "AttentionParams":
        """Read the parameters from a model's call of its attention function."""
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        return cls(scale, sliding_window, softcap, query.shape[1], chunk, s_aux)

    @property
    def is_plain(self) -> bool:
        """Whether the scores go into the softmax as they are, and nothing else does."""
        biases = (self.sinks, self.key_bias, self.relative_bias)
        return self.softcap is None and all(bias is None for bias in biases)

    @property
    def fits_varlen(self) -> bool:
        """Whether torch's variable-length kernels, and their log-sum-exp, are enough."""
        others = (self.softcap, self.chunk, self.key_bias, self.relative_bias)
        return all(other is None for other in others)

    @property
    def reach(self) -> tuple[int | None, int | None]:
        """Identify the masks of the scores."""
        return self.window, self.chunk

    def first_visible(self, position: Position) -> Position:
        """Return the first position that a token sees; it may be negative."""
        if self.window is not None:
            return position + 1 - self.window
        return position // self.chunk * self.chunk if self.chunk is not None else position * 0


def _visible(
    query: torch.Tensor, position: torch.Tensor, attn_params: AttentionParams
) -> torch.Tensor:
    return (position <= query) & (position >= attn_params.first_visible(query))


def _tables_of(
    plan: ForwardPlan | CrossPlan, device: torch.device
) -> tuple[list[DecodeGroup], list[Chunk]]:
    groups = [
        DecodeGroup(
            group.start, group.stop, to_device(group.block_table, device),
            to_device(group.context_lens, device),
        )
        for group in plan.groups
    ]  # fmt: skip
    chunks = [
        Chunk(
            chunk.start, chunk.stop, chunk.context_len, to_device([chunk.block_table], device),
            tuple((first, last) for first, last in chunk.whole_spans),
        )
        for chunk in plan.chunks
    ]  # fmt: skip
    return groups, chunks
