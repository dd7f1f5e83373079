"""LoRA adapters made by peft for the tests' tiny models, and peft's own merged models."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from tests.support.models import tiny_models


@contextmanager
def _peft() -> Iterator[None]:
    """Peft asks transformers for things under their old names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


LLAMA_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save(folder: Path, model: PreTrainedModel, seed: int, **config: object) -> Path:
    """Write an adapter with random weights that are large enough to change the text."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": LLAMA_LAYERS, "lora_dropout": 0.0}
    with _peft():
        torch.manual_seed(seed)
        wrapped = get_peft_model(
            model, LoraConfig(**settings | config, task_type="CAUSAL_LM", init_lora_weights=False)
        )
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape) * 0.2
        wrapped.save_pretrained(folder)
    return folder


def make(folder: Path, name: str, seed: int, **config: object) -> Path:
    """Write an adapter for a tiny model."""
    return save(folder, tiny_models.make(name), seed, **config)


def merged(folder: Path, name: str) -> PreTrainedModel:
    """The tiny model with an adapter's weights added to its own, by peft."""
    return merge(folder, tiny_models.make(name))


def merge(folder: Path, model: PreTrainedModel) -> PreTrainedModel:
    """Add an adapter's weights to those of a model, by peft."""
    with _peft():
        return PeftModel.from_pretrained(model, folder).merge_and_unload()


def generate(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """What transformers' greedy generate adds to a prompt."""
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
    )
    return out[0, len(prompt) :].tolist()
