"""Models with random weights, drawn on the device, and engines of them."""

import time
from typing import Any

import torch

from container.engine.config import EngineConfig
from container.engine.engine import Engine
from container.messages.engine import SamplingParams, Submit
from container.model.execution.factory import capture_decodes, make_runner
from container.model.execution.model_runner import TorchModelRunner
from container.model.kv_cache.cache import BLOCK_SIZE
from container.model.loaded_model import LoadedModel
from container.model.loading.cpu_kernels import load_kernels
from container.model.loading.prepare import prepare

# GPUs with less memory get a smaller model, since it is measured beside a second one.
MEMORY_OF_8B = 60 * 2**30


def shape_for(device: str) -> str:
    """Return the shape of bench_model.py to measure on a device."""
    if device == "cpu":
        return "tiny"
    return "8b" if torch.cuda.mem_get_info()[1] > MEMORY_OF_8B else "1b"


def llama_on(device: str, shape: str, attention: str = "eager") -> Any:
    """Make a Llama of this shape in bfloat16; nothing is read from or written to a disk."""
    from transformers import LlamaForCausalLM
    from transformers.initialization import no_init_weights

    from benchmarks.models.bench_model import SHAPES, llama_config

    config = llama_config(SHAPES[shape])
    config._attn_implementation = attention
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device), no_init_weights():
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.02)
            else:
                parameter.fill_(1.0)
        model.get_output_embeddings().weight[0].zero_()  # no completion ends by itself
    return model.eval()


def prepared(model: Any, device: str, **options: Any) -> LoadedModel:
    """Prepare a model as the server does."""
    kernels = load_kernels() if device == "cpu" else None
    return prepare(model, model.dtype, torch.device(device), cpu_kernels=kernels, **options)


def make_engine(
    model: Any, device: str, *, max_running: int, context: int = 512, graphs: tuple[int, ...] = (),
    overlaps: bool = True, **options: Any,
) -> tuple[Engine, LoadedModel]:  # fmt: skip
    """Make an engine of a model that is prepared, or is prepared now."""
    loaded = model if isinstance(model, LoadedModel) else prepared(model, device, **options)
    size = BLOCK_SIZE[device]
    blocks = -(-context // size)
    config = EngineConfig(
        block_size=size, num_blocks=blocks * max_running + 1, max_batch_tokens=2048,
        max_running=max_running, max_input_tokens=context - 1, max_total_tokens=context,
        max_requests=2 * max_running, reuses_prefixes=False,
    )  # fmt: skip
    runner = make_runner(loaded, config, end_token_ids=frozenset(), overlaps=overlaps)
    if graphs and device == "cuda":
        assert isinstance(runner, TorchModelRunner)
        capture_decodes(runner.forward, list(graphs), blocks, loaded.device, lambda _: None)
        assert runner.forward.has_graphs, "no CUDA graphs were captured; see the output"
    return Engine(runner, config, end_token_ids=()), loaded


def greedy(engine: Engine, prompt: list[int], count: int) -> list[int]:
    """Return the ids that follow a prompt."""
    params = SamplingParams(max_new_tokens=count, ignore_eos=True)
    engine.submit(b"", Submit(0, prompt, params))
    ids = []
    while engine.has_work:
        ids += [event.token_id for _, event in engine.step()]
    return ids


def decode_seconds(engine: Engine, batch: int, prompt: int, steps: int) -> float:
    """Return the time of a decode step with so many sequences, the host's work included."""
    import random

    from benchmarks.models.bench_model import random_prompt

    rnd = random.Random(batch)
    params = SamplingParams(max_new_tokens=steps + 8, ignore_eos=True)
    for index in range(batch):
        engine.submit(b"", Submit(index, random_prompt(rnd, prompt), params))
    seen: set[int] = set()
    while len(seen) < batch:
        seen |= {event.request_id for _, event in engine.step()}
    synchronize()
    started, count = time.perf_counter(), 0
    while engine.has_work:
        if len(engine.step()) < batch:
            break
        count += 1
    synchronize()
    seconds = (time.perf_counter() - started) / max(1, count)
    while engine.has_work:
        engine.step()
    return seconds


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def free() -> None:
    """Give back memory that no tensor has."""
    import gc

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
