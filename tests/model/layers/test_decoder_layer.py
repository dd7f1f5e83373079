import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, GraniteConfig

from container.model.layers.decoder_layer import FusedDecoderLayer
from tests.support.models import tiny_models
from tests.support.models.prepared import prepare


def _fused_layers(model: torch.nn.Module) -> int:
    cpu = torch.device("cpu")
    loaded = prepare(model, torch.float32, cpu)
    return sum(isinstance(module, FusedDecoderLayer) for module in loaded.module.modules())


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral"])
def test_layers_of_the_llama_family_are_replaced(name: str) -> None:
    model = tiny_models.make(name)
    assert _fused_layers(model) == model.config.num_hidden_layers


@pytest.mark.parametrize("name", ["gpt_neox", "gemma3"])
def test_layers_with_other_parts_stay(name: str) -> None:
    assert _fused_layers(tiny_models.make(name)) == 0


def test_a_layer_that_has_the_parts_and_computes_otherwise_stays() -> None:
    # Granite scales what each part adds, which its parts do not show.
    config = GraniteConfig(**tiny_models.GROUPED, residual_multiplier=0.5)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager")
    assert _fused_layers(model.eval()) == 0


def test_granite_without_multipliers_is_the_llama_layer() -> None:
    # So the test above fails to replace because of the numbers, and not of a name.
    config = GraniteConfig(**tiny_models.GROUPED, attention_multiplier=0.25)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager")
    assert _fused_layers(model.eval()) == 2
