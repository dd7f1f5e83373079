"""Tiny random models of several architectures, and what `generate` says of them."""

import copy
import json
import shutil
from functools import cache
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY = 200
CONTEXT = 256
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**GROUPED),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=16),
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "mistral": MistralConfig(**GROUPED, sliding_window=10),
    "gemma3": Gemma3TextConfig(
        **GROUPED | {"num_hidden_layers": 3},
        head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    ),
}


def make(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The same weights at every call, large enough that logits are far apart."""
    generator = torch.Generator().manual_seed(7)
    config = copy.deepcopy(CONFIGS[name])  # a model changes its configuration
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model.to(dtype)


@cache
def reference(name: str, prompt: tuple[int, ...], count: int) -> list[int]:
    """What transformers' own greedy `generate` adds to a prompt; no end token."""
    model = _reference_model(name)
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
    )
    return out[0, len(prompt) :].tolist()


def prompt_logprobs(name: str, prompt: list[int]) -> list[float]:
    """The log-probability of each prompt token but the first, from one plain forward pass."""
    with torch.inference_mode():
        logits = _reference_model(name)(torch.tensor([prompt])).logits[0].log_softmax(-1)
    return [logits[index, token].item() for index, token in enumerate(prompt[1:])]


@cache
def _reference_model(name: str) -> PreTrainedModel:
    return make(name)


def save_endless(folder: Path, tokenizer_from: Path) -> None:
    """Write a model with a long context that never ends a completion by itself."""
    shutil.copytree(tokenizer_from, folder, ignore=shutil.ignore_patterns("*.safetensors", "g*"))
    vocabulary = json.loads((tokenizer_from / "config.json").read_text())["vocab_size"]
    sizes = GROUPED | {"vocab_size": vocabulary, "max_position_embeddings": 100_000}
    config = LlamaConfig(**sizes | {"eos_token_id": None})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
