"""Attention of an encoder-decoder's decoder, under the name `paged_encoder_decoder`.

A decoder layer attends to the decoder's own tokens, as any paged layer does, and to the outputs of
the encoder (cross-attention). Both kinds of keys and values are in the same layer of the cache, in
different blocks of a sequence: the step has a second table for those of the encoder, which is
written in the step that begins a sequence.
"""

from dataclasses import replace
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from container.model.attention.dense import attend_dense
from container.model.attention.metadata import AttentionMetadata, AttentionParams, Chunk
from container.model.attention.paged import attend, decode_groups

NAME = "paged_encoder_decoder"


def mark(
    attention: torch.nn.Module, *, reads_encoder: bool, relative_bias: torch.Tensor | None
) -> None:
    """Note on an attention module what it attends to, and the bias of its scores."""
    vars(attention)["reads_encoder"] = reads_encoder
    vars(attention)["paged_relative_bias"] = relative_bias


def reads_encoder(module: torch.nn.Module) -> bool:
    """Whether an attention module attends to the outputs of the encoder."""
    return bool(vars(module).get("reads_encoder", False))


def attend_encoder_decoder(
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
    attn_params = AttentionParams.of(query, **arguments)
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    if reads_encoder(module):
        assert step.cross is not None, "a step without the table of the encoder's outputs"
        return attend_encoded(step.cross, layer, q, k, v, attn_params)[None], None
    bias = vars(module).get("paged_relative_bias")
    return attend(step, layer, q, k, v, replace(attn_params, relative_bias=bias))[None], None


def attend_encoded(
    cross: AttentionMetadata,
    layer: int,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    attn_params: AttentionParams,
) -> torch.Tensor:
    """Attend with the rows of a step, [rows, heads, dim], each to all outputs of its encoder.

    `keys` and `values`, [encoded tokens, kv_heads, dim], are stored first if the step has any.
    """
    shape = cross.cache.shapes[layer]
    if len(cross.slot_mapping):
        cross.cache.write(layer, keys, values, cross.slot_rows(shape.kv_heads))
    out = decode_groups(cross, layer, query, shape.kv_heads, attn_params)
    for chunk in cross.chunks:
        rows = slice(chunk.start, chunk.stop)
        out[rows] = _attend_chunk(cross, layer, chunk, query[rows], attn_params)
    return out


def _attend_chunk(
    cross: AttentionMetadata,
    layer: int,
    chunk: Chunk,
    query: torch.Tensor,
    attn_params: AttentionParams,
) -> torch.Tensor:
    kv_heads = cross.cache.shapes[layer].kv_heads
    rows = cross.block_rows(chunk, kv_heads)
    keys, values = cross.cache.gather(layer, rows, 1, query.dtype)
    keys, values = (part[:, : chunk.context_len] for part in (keys, values))
    mask = torch.ones(len(query), chunk.context_len, dtype=torch.bool, device=query.device)
    return attend_dense(query.transpose(0, 1), keys, values, mask, 0, attn_params).transpose(0, 1)


ALL_ATTENTION_FUNCTIONS.register(NAME, attend_encoder_decoder)
