"""Attention with queries, keys and values that lie in dense tensors, in PyTorch operations."""

import torch

from container.model.attention import relative_bias
from container.model.attention.metadata import AttentionParams


def attend_dense(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    first: int,
    attn_params: AttentionParams,
    *,
    start: int = 0,
) -> torch.Tensor:
    """Attend with all queries to all keys; all are [heads, positions, dim].

    `mask` is True where a query sees a key, [queries, keys]; None: causal. `first` is the
    position of the first key, `start` that of the first query.
    """
    if not attn_params.is_plain:
        assert mask is not None
        return _attend_by_products(query, keys, values, mask, first, attn_params, start)
    out = torch.nn.functional.scaled_dot_product_attention(
        query[None],
        keys[None],
        values[None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=attn_params.scale,
        enable_gqa=len(query) != len(keys),
    )
    return out[0]


def _attend_by_products(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    first: int,
    attn_params: AttentionParams,
    start: int,
) -> torch.Tensor:
    """Attend as `attend_dense` does, with a softcap, sinks or a bias."""
    heads, count, dim = query.shape
    # [kv_heads, queries of all heads of one KV head, dim]
    rows = query.reshape(len(keys), -1, dim)
    scores = widened(torch.bmm(rows, keys.transpose(1, 2))).view(heads, count, -1)
    scores *= attn_params.scale
    if attn_params.softcap is not None:
        scores = torch.tanh(scores / attn_params.softcap) * attn_params.softcap
    if attn_params.key_bias is not None:
        scores += bias_of(attn_params.key_bias, first, scores.shape[-1])[:, None]
    if attn_params.relative_bias is not None:
        scores += relative_bias.of_rows(
            attn_params.relative_bias, start, count, first, scores.shape[-1]
        )
    scores.masked_fill_(~mask, float("-inf"))
    sinks = attn_params.sinks
    if sinks is not None:
        sinks = sinks[:, None].expand(-1, count)
    weights = softmax(scores, sinks).to(values.dtype)
    return torch.bmm(weights.reshape(*rows.shape[:2], -1), values).view(heads, count, -1)


def softmax(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """Return the weights of scores [..., queries, keys]; `sinks` are scores too, [..., queries].

    It computes in float32 for every narrower dtype.
    """
    if sinks is None:
        return scores.softmax(-1)
    return torch.cat([scores, sinks[..., None].to(scores.dtype)], -1).softmax(-1)[..., :-1]


def bias_of(key_bias: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """Return the biases of `count` keys from position `first` on; 0 past the last: [heads, count].

    No query sees keys past the last.
    """
    bias = key_bias[:, first : first + count]
    return torch.nn.functional.pad(bias, (0, count - bias.shape[1]))


def widened(scores: torch.Tensor) -> torch.Tensor:
    """Return scores in float32, or as they are if they are wider."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
