"""Paged attention, plugged into transformers' attention interface under the name `paged`.

All tokens of a step lie in one row, decodes first, then the prefill chunks:

    | d d d d | chunk of A ........ | chunk of B .... | padding |
     one token of each sequence; rows sorted so that similar contexts share a group

A decode reads its sequence's blocks and multiplies once for each (sequence, KV head) with the query
heads of a group as rows: two batched GEMMs, softmax in float32. A chunk runs torch's
scaled_dot_product_attention on whole blocks: with lengths that are multiples of the block size, a
token's result has the same bits for every split of its prompt into chunks and every cached prefix.
Every layer gets the same `AttentionMetadata`, which the runner creates.
"""

from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from container.model.attention import relative_bias
from container.model.attention.dense import attend_dense, bias_of, softmax, widened
from container.model.attention.latent import latents_of
from container.model.attention.metadata import (
    TILE,
    AttentionMetadata,
    AttentionParams,
    Chunk,
    DecodeGroup,
)
from container.model.attention.varlen import DecodeMetadata, VarlenMetadata, attend_varlen

NAME = "paged"


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    step: AttentionMetadata,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """Implement transformers' attention interface.

    query is [1, heads, tokens, dim]; returns [1, tokens, heads, dim].
    """
    layer: int = module.layer_idx  # type: ignore[assignment]
    attn_params = AttentionParams.of(query, **arguments, chunk=step.cache.shapes[layer].chunk)
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    latents = latents_of(module)
    if latents is None:
        return attend(step, layer, q, k, v, attn_params)[None], None
    out = attend(step, layer, latents.absorb(q), k, v, attn_params)
    return latents.expand(out)[None], None


def attend(
    step: AttentionMetadata,
    layer: int,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    attn_params: AttentionParams,
) -> torch.Tensor:
    """Store keys and values, then attend within the step; all are [tokens, heads, dim]."""
    step = step.on(query.device)
    step.cache.write(layer, keys, values, step.slot_rows(keys.shape[1]))
    return attend_cached(step, layer, query, keys, values, attn_params)


def attend_cached(
    step: AttentionMetadata,
    layer: int,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    attn_params: AttentionParams,
) -> torch.Tensor:
    """Attend within a step whose keys and values are stored; all are [tokens, heads, dim]."""
    kv_heads = keys.shape[1]
    if step.decodes is not None:
        return _attend_apart(step, step.decodes, layer, query, keys, values, attn_params)
    if step.varlen is not None and attn_params.fits_varlen:
        return _attend_varlen(step, step.varlen, layer, query, attn_params)
    if not step.chunks and len(step.groups) == 1 and step.groups[0].stop == len(query):
        return decode(step, layer, step.groups[0], query, kv_heads, attn_params)
    out = decode_groups(step, layer, query, kv_heads, attn_params)
    return _attend_chunks(step, layer, query, keys, values, attn_params, out)


def decode_groups(
    step: AttentionMetadata,
    layer: int,
    query: torch.Tensor,
    kv_heads: int,
    attn_params: AttentionParams,
) -> torch.Tensor:
    """Attend with the decodes of a step, [tokens, heads, dim]; the rows of chunks are zeros."""
    out = query.new_zeros(*query.shape[:2], step.cache.shapes[layer].value_dim)
    for group in step.groups:
        rows = slice(group.start, group.stop)
        out[rows] = decode(step, layer, group, query[rows], kv_heads, attn_params)
    return out


def _attend_chunks(
    step: AttentionMetadata,
    layer: int,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    attn_params: AttentionParams,
    out: torch.Tensor,
) -> torch.Tensor:
    """Attend with the rows of all chunks, and return `out` with their results in it."""
    for chunk in step.chunks:
        rows = slice(chunk.start, chunk.stop)
        out[rows] = prefill(step, layer, chunk, query[rows], keys[rows], values[rows], attn_params)
    return out


def _attend_varlen(
    step: AttentionMetadata,
    tables: VarlenMetadata,
    layer: int,
    query: torch.Tensor,
    params: AttentionParams,
) -> torch.Tensor:
    return attend_varlen(
        tables, step.cache, layer, query, params.scale, params.window, params.sinks
    )


def _attend_apart(
    step: AttentionMetadata,
    decodes: DecodeMetadata,
    layer: int,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    attn_params: AttentionParams,
) -> torch.Tensor:
    """Attend with our kernel for the decodes, at least one, and another for all other rows."""
    from container.model.kernels.triton_attention import decode_attention  # only where Triton is

    cache, count = step.cache, len(decodes.context_lens)
    decoded = decode_attention(
        query[:count].contiguous(),
        cache.keys[layer],
        cache.values[layer],
        decodes.block_table,
        decodes.context_lens,
        kv_heads=keys.shape[1],
        scale=attn_params.scale,
        window=attn_params.window,
        chunk=attn_params.chunk,
        softcap=attn_params.softcap,
        sinks=attn_params.sinks,
        key_bias=attn_params.key_bias,
        is_latent=cache.shapes[layer].is_latent,
    )
    if count == len(query):
        return decoded
    out = query.new_zeros(*query.shape[:2], values.shape[-1])
    out[:count] = decoded
    if step.varlen is not None and attn_params.fits_varlen:
        out[count:] = _attend_varlen(step, step.varlen, layer, query[count:], attn_params)
        return out
    return _attend_chunks(step, layer, query, keys, values, attn_params, out)


def decode(
    step: AttentionMetadata,
    layer: int,
    group: DecodeGroup,
    query: torch.Tensor,
    kv_heads: int,
    attn_params: AttentionParams,
) -> torch.Tensor:
    """Attend with one query of each sequence of a group, [sequences, heads, dim]."""
    count, heads, dim = query.shape
    keys, values = step.cache.gather(layer, step.block_rows(group, kv_heads), count, query.dtype)
    # [sequences * kv_heads, query heads of one KV head, dim]
    rows = query.reshape(count * kv_heads, heads // kv_heads, dim)
    scores = torch.bmm(rows, keys.transpose(1, 2))
    if attn_params.scale != 1.0:
        scores = scores.mul_(attn_params.scale)
    if attn_params.softcap is not None:
        scores = torch.tanh(scores.float() / attn_params.softcap) * attn_params.softcap
    if attn_params.key_bias is not None:
        bias = bias_of(attn_params.key_bias, 0, scores.shape[-1])
        scores = widened(scores).unflatten(0, (count, kv_heads))
        scores = (scores + bias.view(kv_heads, -1, bias.shape[1])).flatten(0, 1)
    if attn_params.relative_bias is not None:
        scores = widened(scores) + _relative_bias(step, group, attn_params.relative_bias, kv_heads)
    scores += step.decode_bias(group, attn_params, kv_heads, scores.dtype)
    sinks = attn_params.sinks
    if sinks is not None:
        sinks = sinks.view(kv_heads, -1).repeat(count, 1)
    return torch.bmm(softmax(scores, sinks).to(values.dtype), values).view(count, heads, -1)


def _relative_bias(
    step: AttentionMetadata, group: DecodeGroup, table: torch.Tensor, kv_heads: int
) -> torch.Tensor:
    """Return biases by distance: [sequences * kv_heads, heads of one KV head, positions]."""
    length = group.block_table.shape[1] * step.cache.block_size

    def make() -> torch.Tensor:
        biases = relative_bias.of_ends(table, group.context_lens, length)
        return biases.unflatten(1, (kv_heads, -1)).flatten(0, 1)

    return step.memoize(("relative", group.start, id(table), kv_heads), make)


def prefill(
    step: AttentionMetadata,
    layer: int,
    chunk: Chunk,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    attn_params: AttentionParams,
) -> torch.Tensor:
    """Attend with a chunk's queries, [tokens, heads, dim]; its keys and values are stored."""
    if query.device.type == "cpu":
        return _prefill_in_tiles(step, layer, chunk, query, keys.shape[1], attn_params)
    count, kv_heads = keys.shape[:2]
    is_whole = chunk.context_len == count
    if is_whole:
        padding = chunk.block_table.shape[1] * step.cache.block_size - count
        # A token's result must not depend on how its prompt was split into chunks.
        keys, values = step.cache.as_stored(keys), step.cache.as_stored(values)
        keys = torch.nn.functional.pad(keys.transpose(0, 1), (0, 0, 0, padding))
        values = torch.nn.functional.pad(values.transpose(0, 1), (0, 0, 0, padding))
    else:
        keys, values = step.cache.gather(layer, step.block_rows(chunk, kv_heads), 1, query.dtype)
    mask = None
    is_causal = attn_params.is_plain and attn_params.first_visible(count - 1) <= 0
    if not is_whole or not is_causal or chunk.whole_spans:
        mask = step.chunk_mask(chunk, attn_params)
        mask = chunk.show_whole(mask, chunk.context_len - count, 0)
    first = chunk.context_len - count
    return attend_dense(
        query.transpose(0, 1), keys, values, mask, 0, attn_params, start=first
    ).transpose(0, 1)


def _prefill_in_tiles(
    step: AttentionMetadata,
    layer: int,
    chunk: Chunk,
    query: torch.Tensor,
    kv_heads: int,
    attn_params: AttentionParams,
) -> torch.Tensor:
    """Attend with tiles of TILE queries that begin at multiples of TILE.

    A tile's size and number of keys do not depend on how the prompt was split into chunks, so the
    CPU's GEMMs always round its rows in the same way. Keys that none of its rows sees are left out.
    """
    size, first = step.cache.block_size, chunk.context_len - len(query)
    keys, values = step.cache.gather(layer, step.block_rows(chunk, kv_heads), 1, query.dtype)
    begin, end = first // TILE * TILE, _tile_end(chunk.context_len)
    missing = max(0, end - chunk.block_table.shape[1] * size)
    keys, values = (torch.nn.functional.pad(part, (0, 0, 0, missing)) for part in (keys, values))
    for part in (keys, values):  # zero weights would still propagate NaN of another sequence
        part[:, chunk.context_len :] = 0
    rows = torch.nn.functional.pad(
        query.transpose(0, 1), (0, 0, first - begin, end - chunk.context_len)
    )
    out = query.new_empty(end - begin, query.shape[1], values.shape[-1])
    for start in range(begin, end, TILE):
        stop = start + TILE
        low = max(0, chunk.first_seen(start, attn_params)) // TILE * TILE
        reach = _tile_end(chunk.reach(start, min(stop, chunk.context_len)))
        tile, context = slice(start - begin, stop - begin), slice(low, reach)
        mask = chunk.show_whole(step.tile_mask(start, low, reach, attn_params), start, low)
        part = attend_dense(
            rows[:, tile], keys[:, context], values[:, context], mask, low, attn_params,
            start=start,
        )  # fmt: skip
        out[tile] = part.transpose(0, 1)
    return out[first - begin : chunk.context_len - begin]


def _tile_end(position: int) -> int:
    return -(-position // TILE) * TILE


ALL_ATTENTION_FUNCTIONS.register(NAME, paged_attention)
