"""SmolLM2-135M-Instruct for tests: its folder, transformers' own results, engines that serve it."""

from functools import cache
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from container.engine.engine import Engine
from container.model.execution.factory import make_runner
from container.model.loaded_model import LoadedModel
from container.model.lora.layers import LoraLayers
from container.model.lora.manager import LoraManager
from examples import smollm2
from tests.support.engines import engine_config
from tests.support.models.prepared import prepare

CPU = torch.device("cpu")
END = 2
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


def folder() -> Path:
    """Return the model's folder; write it first if it is missing."""
    return smollm2.ensure()


def load(dtype: torch.dtype) -> LlamaForCausalLM:
    """Load the model anew, as transformers has it."""
    return LlamaForCausalLM.from_pretrained(folder(), dtype=dtype).eval()


@cache
def reference(dtype: torch.dtype) -> LlamaForCausalLM:
    """Load transformers' own model, to compare with."""
    return load(dtype)


@cache
def prepared(
    dtype: torch.dtype, *, quantize: str | None = None, cache_dtype: torch.dtype | None = None
) -> LoadedModel:
    """Prepare the model as the server does; several engines may share it, one after another."""
    return prepare(load(dtype), dtype, CPU, quantize=quantize, cache_dtype=cache_dtype)


def release() -> None:
    """Forget the models that this module keeps."""
    reference.cache_clear()
    prepared.cache_clear()


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Load the model's tokenizer."""
    return AutoTokenizer.from_pretrained(folder())


def chat_ids(question: str) -> list[int]:
    """Render a question with the model's chat template; return its ids."""
    messages = [{"role": "user", "content": question}]
    text = tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer()(text)["input_ids"]


def engine(
    model: LoadedModel,
    *,
    overlaps: bool = False,
    adapters: dict[str, Path] | None = None,
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
        model, config, end_token_ids=frozenset({END}), lora_layers=lora_layers, overlaps=overlaps
    )
    store = None if lora_layers is None else LoraManager(lora_layers, max_in_memory=8)
    for name, path in (adapters or {}).items():
        store.add_now(name, str(path))
    return Engine(runner, config, end_token_ids=(END,), adapters=store)


def generate(model: LlamaForCausalLM, prompt: list[int], count: int) -> list[int]:
    """Return the tokens that transformers' greedy `generate` adds to a prompt."""
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
    )
    return out[0, len(prompt) :].tolist()


@cache
def greedy(question: str, count: int) -> list[int]:
    """Return transformers' greedy answer to a question, in float32."""
    return generate(reference(torch.float32), chat_ids(question), count)
