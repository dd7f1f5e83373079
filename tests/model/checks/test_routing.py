"""Experts in reference checks: near-ties of a router are no errors, wrong experts are."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from container.errors import ModelLoadError
from container.model.checks.routing import Routing
from tests.support.models import outliers
from tests.support.models.prepared import prepare
from tests.support.models.tiny_models import GROUPED

CPU = torch.device("cpu")


class Experts(nn.Module):
    def forward(
        self, hidden_states: torch.Tensor, indexes: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return indexes, weights


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = Experts()


def _own_pass(layer: Layer) -> tuple[Routing, torch.Tensor, torch.Tensor]:
    routing = Routing([layer])
    indexes, weights = torch.arange(16).view(8, 2), torch.rand(8, 2)
    with routing.recording():
        for part in (slice(0, 5), slice(5, 8)):
            layer.experts(torch.zeros(8, 4)[part], indexes[part], weights[part])
    assert routing.has_experts
    return routing, indexes, weights


def test_rows_of_near_ties_get_the_experts_of_the_own_pass() -> None:
    layer = Layer()
    routing, own, own_weights = _own_pass(layer)
    positions = torch.tensor([7, 0, 3, 3])
    other, weights = own[positions].flip(-1), torch.zeros(4, 2)
    other[1, 0] = 99
    with routing.replacing(lambda: positions):
        indexes, weights = layer.experts(torch.zeros(4, 4), other, weights)
    assert indexes.tolist() == [[15, 14], [0, 1], [7, 6], [7, 6]]
    assert torch.equal(weights[1], own_weights[0])
    assert not weights[[0, 2, 3]].any()


def test_a_router_that_differs_in_many_rows_is_left_alone() -> None:
    layer = Layer()
    routing, own, _ = _own_pass(layer)
    with routing.replacing(lambda: torch.arange(8)):
        indexes, _ = layer.experts(torch.zeros(8, 4), own + 1, torch.zeros(8, 2))
    assert torch.equal(indexes, own + 1)


def _model() -> Qwen3MoeForCausalLM:
    """A model whose many experts often have close scores, with outliers."""
    torch.manual_seed(2)
    sizes = GROUPED | {"hidden_size": 512, "head_dim": 64, "initializer_range": 0.05}
    config = Qwen3MoeConfig(
        **sizes, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=128
    )
    return outliers.enlarge(Qwen3MoeForCausalLM(config).eval()).to(torch.bfloat16)


def test_near_ties_of_many_experts_refuse_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = prepare(_model(), torch.bfloat16, CPU)
    assert (loaded.attention, loaded.fallbacks) == ("paged", ())
    # They would without this rule, or the test shows nothing.
    monkeypatch.setattr(Routing, "replacing", lambda *_: nullcontext())
    with pytest.raises(ModelLoadError, match="the served layers are off by"):
        prepare(_model(), torch.bfloat16, CPU)
