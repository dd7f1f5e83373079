"""Trained models for tests: their folders, transformers' own results, engines that serve them.

Functions without `model` mean SmolLM2-135M-Instruct.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from container.engine.engine import Engine
from container.model.execution.factory import make_runner
from container.model.loaded_model import LoadedModel
from container.model.lora.layers import LoraLayers
from container.model.lora.manager import LoraManager
from examples import gemma3, smollm2
from examples.model_packages import PackagedModel
from tests.support.engines import engine_config
from tests.support.models.prepared import prepare

CPU = torch.device("cpu")
END = 2


@dataclass(frozen=True, eq=False)
class RealModel:
    """A trained model: its package, its end token, and how much of the work tests ask of it."""

    package: PackagedModel
    end: int
    num_questions: int
    max_new_tokens: int


SMOLLM2 = RealModel(smollm2.MODEL, end=END, num_questions=16, max_new_tokens=16)
# A base model. A step of it takes longer, as it has 262,144 tokens to choose from.
GEMMA3 = RealModel(gemma3.MODEL, end=1, num_questions=3, max_new_tokens=8)
MODELS = {"smollm2": SMOLLM2, "gemma3": GEMMA3}
QUESTIONS = (
    "What is the capital of France?",
    "How many legs does a spider have?",
    "Write one sentence about the sea.",
    "Why is the sky blue?",
    "Name three colours of the rainbow.",
    "What is 7 plus 5?",
    "Give me a recipe for pancakes.",
    "Who wrote Romeo and Juliet?",
    "Translate 'good morning' into Spanish.",
    "What does a baker do at four in the morning?",
    "List the first five prime numbers, separated by commas.",
    "Explain to a child what a computer program is.",
    "Write a Python function that reverses a string.",
    "My cat doesn't eat. What should I do?",
    "Is water heavier than oil? Answer yes or no, then say why.",
    "Continue the story: The old lighthouse keeper opened the door and",
)


def folder(model: RealModel = SMOLLM2) -> Path:
    """Return a model's folder; write it first if it is missing."""
    return model.package.ensure()


def load(dtype: torch.dtype, model: RealModel = SMOLLM2) -> PreTrainedModel:
    """Load a model anew, as transformers has it."""
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder(model), dtype=dtype)
    return loaded.eval()


@cache
def reference(dtype: torch.dtype, model: RealModel = SMOLLM2) -> PreTrainedModel:
    """Load transformers' own model, to compare with."""
    return load(dtype, model)


@cache
def prepared(
    dtype: torch.dtype,
    model: RealModel = SMOLLM2,
    *,
    quantize: str | None = None,
    cache_dtype: torch.dtype | None = None,
) -> LoadedModel:
    """Prepare a model as the server does; several engines may share it, one after another.

    Raises AssertionError if it is not served on the fast path.
    """
    served = prepare(load(dtype, model), dtype, CPU, quantize=quantize, cache_dtype=cache_dtype)
    assert served.attention == "paged"
    # The compiled kernels read no cache of eight bits.
    others = [line for line in served.fallbacks if not line.startswith("CPU kernels: they read no")]
    assert others == []
    assert cache_dtype is not None or not served.fallbacks
    return served


def release() -> None:
    """Forget the models that this module keeps."""
    reference.cache_clear()
    prepared.cache_clear()


@cache
def tokenizer(model: RealModel = SMOLLM2) -> PreTrainedTokenizerFast:
    """Load a model's tokenizer."""
    return AutoTokenizer.from_pretrained(folder(model))


def chat_ids(question: str, model: RealModel = SMOLLM2) -> list[int]:
    """Render a question with the model's chat template; return its ids.

    A base model gets it as the text that it would continue with an answer.
    """
    if tokenizer(model).chat_template is None:
        ids: list[int] = tokenizer(model)(f"Question: {question}\nAnswer:")["input_ids"]
        return ids
    messages = [{"role": "user", "content": question}]
    text = tokenizer(model).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    return tokenizer(model)(text)["input_ids"]


def engine(
    model: LoadedModel,
    *,
    overlaps: bool = False,
    adapters: dict[str, Path] | None = None,
    end: int = END,
    **sizes: int,
) -> Engine:
    """Make an engine around a prepared model, which stays changed if it gets adapters."""
    defaults = {
        "block_size": 16,
        "num_blocks": 256,
        "max_batch_tokens": 512,
        "max_running": 16,
        "max_input_tokens": 1000,
        "max_total_tokens": 1100,
    }
    config = engine_config(**defaults | sizes)
    lora_layers = None if adapters is None else LoraLayers(model.module, model.dtype, CPU)
    runner = make_runner(
        model, config, end_token_ids=frozenset({end}), lora_layers=lora_layers, overlaps=overlaps
    )
    store = None if lora_layers is None else LoraManager(lora_layers, max_in_memory=8)
    for name, path in (adapters or {}).items():
        store.add_now(name, str(path))
    return Engine(runner, config, end_token_ids=(end,), adapters=store)


def generate(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """Return the tokens that transformers' greedy `generate` adds to a prompt."""
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
    )
    return out[0, len(prompt) :].tolist()


@cache
def greedy(question: str, count: int, model: RealModel = SMOLLM2) -> list[int]:
    """Return transformers' greedy answer to a question, in float32."""
    return generate(reference(torch.float32, model), chat_ids(question, model), count)
