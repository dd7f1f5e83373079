"""The trace of a model's own attention, and the models that are refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from container.model.attention.metadata import AttentionParams
from container.model.attention.traced import NotTraceable, TracedCache

ROWS, HEADS, DIM = 3, 2, 4


def _traced(compute: Callable[[torch.Tensor, Any, Any], Any]) -> tuple[Any, list[AttentionParams]]:
    """Run an attention on stand-ins; return its output, and the parameters that were noted."""
    noted: list[AttentionParams] = []

    def attend(
        layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, params: AttentionParams
    ) -> torch.Tensor:
        assert (layer, q.shape, k.shape, v.shape) == (7, (ROWS, HEADS, DIM), *2 * [(ROWS, 1, DIM)])
        noted.append(params)
        return q

    states = torch.randn(1, 1, ROWS, DIM)
    keys, values = TracedCache(attend, ROWS, 10).update(states, states, 7)
    query = torch.arange(HEADS * ROWS * DIM).view(1, HEADS, ROWS, DIM).float()
    out = compute(query, keys, values)
    if isinstance(out, torch.Tensor):
        assert torch.equal(out.view(query.shape), query)
    return out, noted


def test_scale_and_bias_are_noted_in_every_form_of_the_product() -> None:
    alibi = torch.tensor([[0.5], [0.25]]) * torch.arange(10)

    def by_methods(q: torch.Tensor, k: Any, v: Any) -> Any:
        scores = (q @ k.transpose(-1, -2) + 2 * alibi[None, :, None]) * 0.5
        return nn.functional.dropout(scores.float().softmax(-1).to(q.dtype), 0.1, False) @ v

    def by_functions(q: torch.Tensor, k: Any, v: Any) -> Any:
        flat = q.reshape(HEADS, ROWS, DIM)
        keys, values = k.reshape(HEADS, -1, DIM).transpose(1, 2), v.reshape(HEADS, -1, DIM)
        scores = alibi[:, None].baddbmm(batch1=flat, batch2=keys, beta=1.0, alpha=0.5)
        scores = scores.view(1, HEADS, ROWS, -1)
        weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32)
        return torch.bmm(weights.view(HEADS, ROWS, -1), values)

    def in_place(q: torch.Tensor, k: Any, v: Any) -> Any:
        scores = torch.matmul(q, k.transpose(-1, -2))
        scores /= torch.tensor(2.0)
        scores += alibi[None, :, None]
        return torch.matmul(nn.functional.softmax(scores + None, dim=-1), v)

    def fused(q: torch.Tensor, k: Any, v: Any) -> Any:
        bias = alibi[None, :, None]
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.5)

    for compute in (by_methods, by_functions, in_place, fused):
        _, (params,) = _traced(compute)
        assert (params.scale, params.heads) == (0.5, HEADS)
        assert params.key_bias is not None
        assert torch.equal(params.key_bias, alibi)


def test_keys_look_as_long_as_the_longest_context() -> None:
    cache = TracedCache(lambda *_: torch.empty(0), ROWS, 10)
    assert (cache.get_seq_length(), cache.get_mask_sizes(ROWS)) == (10 - ROWS, (10, 0))
    keys, _ = cache.update(torch.empty(1, 2, ROWS, 4), torch.empty(1, 2, ROWS, 6), 0)
    assert keys.shape == (1, 2, 10, 4)
    assert TracedCache(lambda *_: torch.empty(0), 12, 10).get_mask_sizes(12) == (12, 0)


@pytest.mark.parametrize(
    ("compute", "reason"),
    [
        (lambda q, k, v: (q @ k + torch.zeros(1, HEADS, ROWS, 10)) @ v, "differs between queries"),
        (lambda q, k, v: torch.where(torch.ones(1) > 0, q @ k, 0), "uses where"),
        (lambda q, k, v: (q @ k).masked_fill(torch.ones(10) > 0, 0), "uses masked_fill"),
        (lambda q, k, v: (q @ k) @ k, "multiplies other tensors"),
        (lambda q, k, v: k.exp(), "uses exp"),
    ],
)
def test_other_operations_are_refused_by_name(
    compute: Callable[[torch.Tensor, Any, Any], Any], reason: str
) -> None:
    with pytest.raises(NotTraceable, match=reason):
        _traced(compute)
