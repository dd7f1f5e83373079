"""Attention over texts of different lengths without padding, under the name `unpadded`.

All tokens of a batch lie in one row, text after text, sorted by length:

    | text A | text B | text C ... | text D ............ |

Linear layers and norms process one matrix of real tokens only; attention runs once for each span,
which is a run of texts of equal length. Encoders and (causal) decoders are treated alike.
"""

from typing import NamedTuple

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "unpadded"
# In bfloat16 two batched GEMMs are 1.4 to 2 times as fast as torch's fused kernel at these lengths
# on a CPU; below, the fused kernel has less overhead; above, it takes less memory (docs/LOG.md).
PRODUCT_LENGTHS = range(48, 513)


class Span(NamedTuple):
    """`texts` of `length` tokens each, from row `start` on."""

    start: int
    texts: int
    length: int


def spans_of(lengths: list[int]) -> list[Span]:
    """Merge adjacent texts of equal length into spans."""
    spans: list[Span] = []
    start = 0
    for length in lengths:
        if spans and spans[-1].length == length:
            spans[-1] = spans[-1]._replace(texts=spans[-1].texts + 1)
        else:
            spans.append(Span(start, 1, length))
        start += length
    return spans


def unpadded_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    spans: list[Span],
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attend within each text. query [1, heads, tokens, dim]; returns [1, tokens, heads, dim].

    Raises NotImplementedError for masks, windows, softcaps and sinks; such models are padded.
    """
    unknown = attention_mask, sliding_window, softcap, s_aux
    if any(argument is not None for argument in unknown):
        raise NotImplementedError("unpadded attention supports no mask, window, softcap or sinks")
    is_causal = bool(getattr(module, "is_causal", False))
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    out = attend_within(spans, query[0], key[0], value[0], scale, is_causal=is_causal)
    return out[None], None


def attend_within(
    spans: list[Span],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    *,
    is_causal: bool = False,
) -> torch.Tensor:
    """Attend within each text. query [heads, tokens, dim]; returns [tokens, heads, dim]."""
    out = query.new_empty(query.shape[1], query.shape[0], value.shape[-1])
    for span in spans:
        rows = slice(span.start, span.start + span.texts * span.length)
        q, k, v = (_texts(heads, rows, span) for heads in (query, key, value))
        span_out = out[rows].view(span.texts, span.length, *out.shape[1:])
        span_out.copy_(_attend(q, k, v, scale, is_causal).transpose(1, 2))
    return out


def _texts(heads: torch.Tensor, rows: slice, span: Span) -> torch.Tensor:
    """View a span of [heads, tokens, dim] as [texts, heads, length, dim]."""
    return heads[:, rows].unflatten(1, (span.texts, span.length)).transpose(0, 1)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, is_causal: bool
) -> torch.Tensor:
    is_grouped = query.shape[1] != key.shape[1]
    fits = query.shape[2] in PRODUCT_LENGTHS and query.device.type == "cpu"
    if query.dtype == torch.bfloat16 and fits and not is_causal and not is_grouped:
        return _two_products(query, key, value, scale)
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=is_causal, scale=scale, enable_gqa=is_grouped
    )


def _two_products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    texts, heads, length, _ = query.shape
    scores = torch.bmm(query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2))
    weights = scores.mul_(scale).softmax(-1, dtype=torch.float32).to(value.dtype)
    return torch.bmm(weights, value.flatten(0, 1)).view(texts, heads, length, -1)


ALL_ATTENTION_FUNCTIONS.register(NAME, unpadded_attention)
