"""Deliberate faults in the served form of a model, and the weights to try them with."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from transformers import (
    GraniteSWAConfig,
    GraniteSWAForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from container.errors import ModelLoadError
from container.model.attention.metadata import AttentionParams
from tests.support.models import outliers, real_models, tiny_models
from tests.support.models.prepared import prepare

CPU = torch.device("cpu")
F32, BF16 = torch.float32, torch.bfloat16
Patch = Callable[[pytest.MonkeyPatch], None]


@cache
def trained(dtype: torch.dtype) -> PreTrainedModel:
    """The first layers of SmolLM2, whose activations grow a thousand times in them."""
    model = real_models.load(dtype)
    del model.model.layers[4:]
    model.config.num_hidden_layers = 4
    model.set_attn_implementation("eager")
    return model


# Families that the trained weights fit: with windows, and with attention sinks.
TRAINED_FORMS: dict[str, Any] = {
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 10}),
    "granite_swa": (
        GraniteSWAConfig,
        GraniteSWAForCausalLM,
        {
            "sliding_window": 10,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "attention_multiplier": 0.125,  # 1 / sqrt(64)
        },
    ),
}


@torch.no_grad()
def _trained_as(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """Give a model of another family the trained weights, and sinks of the scores' size."""
    config_class, model_class, changes = TRAINED_FORMS[name]
    source = trained(dtype)
    fields = source.config.to_dict()
    for field in ("model_type", "architectures", "transformers_version"):
        fields.pop(field, None)
    model = model_class(config_class(**fields | changes)).to(dtype).eval()
    missing, unexpected = model.load_state_dict(source.state_dict(), strict=False)
    assert not unexpected
    assert all(part.endswith("sinks") for part in missing), missing
    for part, parameter in model.named_parameters():
        if part.endswith("sinks"):
            parameter.copy_(torch.linspace(-2, 4, len(parameter)))
    model.set_attn_implementation("eager")
    return model


def with_outliers(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """Return a tiny model with outlier channels and a sink."""
    return outliers.inject(tiny_models.make(name)).to(dtype)


def model_with(weights: str, dtype: torch.dtype, name: str = "qwen3") -> PreTrainedModel:
    """Return a model of a family with `random`, `outliers` or `trained` weights.

    The trained ones are those of Llama, or of a family whose layers are Llama's and one thing more.
    """
    if weights == "trained":
        is_other = name in TRAINED_FORMS
        return _trained_as(name, dtype) if is_other else copy.deepcopy(trained(dtype))
    return tiny_models.make(name, dtype) if weights == "random" else with_outliers(name, dtype)


def is_refused(model: PreTrainedModel, dtype: torch.dtype, **options: Any) -> bool:
    """Whether the checks, and not an exception, kept the model from paged attention."""
    try:
        loaded = prepare(model, dtype, CPU, **options)
    except ModelLoadError as error:
        return "off by" in str(error)
    reasons = "differs from the model's own", "off by"
    is_own = loaded.attention == "own"
    return is_own and any(reason in line for line in loaded.fallbacks for reason in reasons)


def change_attn_params(change: Callable[[AttentionParams], AttentionParams]) -> Patch:
    """Change what paged attention takes from a layer."""
    of = AttentionParams.of.__func__  # type: ignore[attr-defined]

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        def changed(
            cls: type[AttentionParams], query: torch.Tensor, **kwargs: object
        ) -> AttentionParams:
            return change(of(cls, query, **kwargs))

        monkeypatch.setattr(AttentionParams, "of", classmethod(changed))

    return patch


def change_result(owner: object, name: str, change: Callable[..., Any]) -> Patch:
    """Change what a function returns; `change` gets the result and the arguments."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        function = getattr(owner, name)

        def changed(*args: object, **kwargs: object) -> object:
            return change(function(*args, **kwargs), *args, **kwargs)

        monkeypatch.setattr(owner, name, changed)

    return patch
