"""A cache of latents: its size, and what happens where it would be less exact."""

import pytest
import torch

from container.model.attention.latent import LatentAttention
from container.model.kv_cache.cache import LayerShape
from container.model.lora.layers import find_lora_targets
from tests.support.models import tiny_models
from tests.support.models.prepared import prepare

CPU = torch.device("cpu")
RANK, ROPE, NOPE, VALUE, HEADS = 24, 8, 16, 12, 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_holds_latents(dtype: torch.dtype) -> None:
    loaded = prepare(tiny_models.make("deepseek_v3", dtype), dtype, CPU)
    assert loaded.layers == [LayerShape(1, RANK + ROPE, RANK, CPU, is_latent=True)] * 2
    assert loaded.bytes_per_token == 2 * (RANK + ROPE) * dtype.itemsize


def test_adapters_of_latent_projections_are_refused() -> None:
    loaded = prepare(tiny_models.make("deepseek_v3"), torch.float32, CPU)
    names = {part.name for target in find_lora_targets(loaded.module) for part in target.parts}
    assert any(name.endswith("self_attn.q_b_proj") for name in names)
    assert not any(name.endswith("kv_b_proj") for name in names)


@pytest.mark.parametrize("method", ["absorb", "expand"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_that_would_be_less_exact_are_expanded(
    method: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = getattr(LatentAttention, method)
    monkeypatch.setattr(LatentAttention, method, lambda self, rows: exact(self, rows) * 1.02)
    loaded = prepare(tiny_models.make("deepseek_v3", dtype), dtype, CPU)
    assert loaded.attention == "paged"
    assert loaded.layers == [LayerShape(HEADS, NOPE + ROPE, VALUE, CPU)] * 2


def test_eight_bits_are_those_of_the_matrix_that_expands_latents() -> None:
    loaded = prepare(tiny_models.make("deepseek_v3"), torch.float32, CPU, quantize="int8")
    assert loaded.layers is not None
    assert loaded.layers[0].is_latent
