"""Paged attention, plugged into transformers' attention interface under the name `paged`.

All tokens of a step lie in one row, decodes first, then the prefill chunks:

    | d d d d | chunk of A ........ | chunk of B .... | padding |
     one token of each sequence; rows sorted so that similar contexts share a group

A decode reads its sequence's blocks and multiplies once for each (sequence, KV head) with the query
heads of a group as rows: two batched products, softmax in float32. A chunk runs torch's
scaled_dot_product_attention on whole blocks: with lengths that are multiples of the block size, a
token's result has the same bits however its prompt was cut into chunks and whatever of it was
cached. Every layer gets the same `PagedStep`, which the runner makes.
"""

from dataclasses import dataclass, field

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from container.model.kv_cache import KVCache

NAME = "paged"


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

    `slots` is [tokens]: block id * block size + offset.
    """

    cache: KVCache
    slots: torch.Tensor
    groups: list[DecodeGroup]
    chunks: list[Chunk]
    _memo: dict[tuple[object, ...], torch.Tensor] = field(default_factory=dict)

    def slot_rows(self, kv_heads: int) -> torch.Tensor:
        """Rows of the flat cache for each head of each token: [kv_heads * tokens]."""
        return self._remember(("slots", kv_heads), lambda: self._slot_rows(kv_heads))

    def block_rows(self, part: DecodeGroup | Chunk, kv_heads: int) -> torch.Tensor:
        """Rows of the cache for each head of each block: [sequences * kv_heads * blocks]."""

        def make() -> torch.Tensor:
            heads = torch.arange(kv_heads, device=part.blocks.device)[None, :, None]
            return (part.blocks[:, None, :] * kv_heads + heads).flatten()

        return self._remember(("blocks", part.start, kv_heads), make)

    def decode_bias(self, group: DecodeGroup, window: int | None) -> torch.Tensor:
        """0 where a token may be seen, else -inf: [sequences, 1, positions] in float32."""

        def make() -> torch.Tensor:
            length = group.blocks.shape[1] * self.cache.block_size
            position = torch.arange(length, device=group.blocks.device)[None, :]
            hidden = position >= group.context_lens[:, None]
            if window is not None:
                hidden |= position < (group.context_lens - window)[:, None]
            bias = torch.zeros(hidden.shape, device=hidden.device)
            return bias.masked_fill_(hidden, float("-inf"))[:, None, :]

        return self._remember(("bias", group.start, window), make)

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

        return self._remember(("mask", chunk.start, window), make)

    def _slot_rows(self, kv_heads: int) -> torch.Tensor:
        block_size = self.cache.block_size
        block, offset = self.slots // block_size, self.slots % block_size
        heads = torch.arange(kv_heads, device=self.slots.device)[:, None]
        return ((block[None, :] * kv_heads + heads) * block_size + offset[None, :]).flatten()

    def _remember(self, key: tuple[object, ...], make) -> torch.Tensor:  # type: ignore[no-untyped-def]
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    step: PagedStep,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attend within one step. query [1, heads, tokens, dim]; returns [1, tokens, heads, dim]."""
    layer: int = module.layer_idx  # type: ignore[assignment]
    kv_heads = key.shape[1]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    step.cache.write(layer, key[0], value[0], step.slot_rows(kv_heads))
    out = query.new_zeros(query.shape[2], query.shape[1], value.shape[-1])
    for group in step.groups:
        out[group.start : group.stop] = _decode(
            step, layer, group, query[0, :, group.start : group.stop], kv_heads, scale,
            sliding_window, softcap,
        )  # fmt: skip
    for chunk in step.chunks:
        rows = slice(chunk.start, chunk.stop)
        fresh = (key[:, :, rows], value[:, :, rows])
        out[rows] = _prefill(
            step, layer, chunk, query[:, :, rows], fresh, scale, sliding_window, softcap
        )
    return out[None], None


def _decode(
    step: PagedStep,
    layer: int,
    group: DecodeGroup,
    query: torch.Tensor,
    kv_heads: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    heads, count, dim = query.shape
    keys, values = step.cache.gather(layer, step.block_rows(group, kv_heads), count)
    # [sequences * kv_heads, query heads of one KV head, dim]
    rows = query.transpose(0, 1).reshape(count * kv_heads, heads // kv_heads, dim)
    scores = torch.bmm(rows, keys.transpose(1, 2)).float().mul_(scale)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores.view(count, heads, -1).add_(step.decode_bias(group, window))
    weights = scores.softmax(-1).to(values.dtype)
    return torch.bmm(weights, values).view(count, heads, -1)


def _prefill(
    step: PagedStep,
    layer: int,
    chunk: Chunk,
    query: torch.Tensor,
    fresh: tuple[torch.Tensor, torch.Tensor],
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    keys, values = fresh
    count, kv_heads = query.shape[2], keys.shape[1]
    is_whole = chunk.context_len == count
    if is_whole:
        padding = chunk.blocks.shape[1] * step.cache.block_size - count
        keys = torch.nn.functional.pad(keys, (0, 0, 0, padding))
        values = torch.nn.functional.pad(values, (0, 0, 0, padding))
    else:
        all_keys, all_values = step.cache.gather(layer, step.block_rows(chunk, kv_heads), 1)
        keys, values = all_keys[None], all_values[None]
    per_head = query.shape[1] // kv_heads
    keys = keys.repeat_interleave(per_head, 1)
    values = values.repeat_interleave(per_head, 1)
    is_plain = is_whole and (window is None or count <= window)
    if softcap is not None:
        return _softcapped(query, keys, values, step.chunk_mask(chunk, window), scale, softcap)
    out = torch.nn.functional.scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=None if is_plain else step.chunk_mask(chunk, window),
        is_causal=is_plain,
        scale=scale,
    )
    return out[0].transpose(0, 1)


def _softcapped(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    softcap: float,
) -> torch.Tensor:
    scores = (query @ keys.transpose(2, 3)).float() * scale
    scores = torch.tanh(scores / softcap) * softcap
    weights = scores.masked_fill_(~mask, float("-inf")).softmax(-1).to(values.dtype)
    return (weights @ values)[0].transpose(0, 1)


ALL_ATTENTION_FUNCTIONS.register(NAME, paged_attention)
