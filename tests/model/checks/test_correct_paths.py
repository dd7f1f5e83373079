"""No correct path is refused: random, trained and outlier-injected weights of every family."""

import pytest
import torch

from tests.support.models import outliers, tiny_models
from tests.support.models.faults import BF16, CPU, F32, with_outliers
from tests.support.models.prepared import prepare


@pytest.mark.parametrize("name", [*tiny_models.CONFIGS, "llama_wide", "phi3"])
@pytest.mark.parametrize("dtype", [F32, BF16, torch.float16])
def test_no_correct_path_is_refused(name: str, dtype: torch.dtype) -> None:
    loaded = prepare(tiny_models.make(name, dtype), dtype, CPU)
    assert loaded.attention == "paged"
    kernels_lack = [
        line for line in loaded.fallbacks if line.startswith("CPU kernels: they do not")
    ]
    assert len(kernels_lack) == (dtype == torch.float16) == len(loaded.fallbacks)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral", "gemma3"])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_no_correct_path_is_refused_for_outliers_and_sinks(name: str, dtype: torch.dtype) -> None:
    loaded = prepare(with_outliers(name, dtype), dtype, CPU)
    assert (loaded.attention, loaded.fallbacks) == ("paged", ())


@pytest.mark.parametrize("name", sorted(tiny_models.SERVED_CONFIGS))
def test_no_family_falls_off_the_fast_path_for_outliers(name: str) -> None:
    """In bfloat16, where rounding of outliers is largest."""
    loaded = prepare(outliers.enlarge(tiny_models.make(name)).to(BF16), BF16, CPU)
    assert loaded.attention == "paged"
    if loaded.fallbacks:  # not for the outliers
        assert loaded.fallbacks == prepare(tiny_models.make(name, BF16), BF16, CPU).fallbacks


@pytest.mark.parametrize(("size", "massive"), [(150.0, 900.0), (300.0, 3000.0)])
def test_recurrent_rows_of_little_luck_are_accepted(
    size: float, massive: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In these models one rounded number moves a row by 5 to 7 times its error in one own pass."""
    monkeypatch.setattr(outliers, "CHANNEL_SIZE", size)
    monkeypatch.setattr(outliers, "MASSIVE", massive)
    model, generator = tiny_models.make("falcon_h1"), torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if weight.dim() >= 2 and len(weight) > 8:
            order = torch.randperm(weight.numel(), generator=generator)
            weight.data.copy_(weight.flatten()[order].view_as(weight))
    loaded = prepare(outliers.enlarge(model).to(BF16), BF16, CPU)
    assert (loaded.attention, loaded.fallbacks) == ("paged", ())
