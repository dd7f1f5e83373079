"""Measures how long the start's reference check takes for a model of 8B shapes, by extrapolation.

.venv/bin/python -m benchmarks.start_check: prepares random Llama models with the layers of an 8B
model, a few and MORE, as the server does. What a layer adds to the time, times the layers that are
missing, gives the time of the whole model. `own pass` is one forward pass of the model with the
check's ids: the checks run a few of them whole, and the checked layers alone otherwise. Packing
weights and replacing layers, which are no checks, are in `converting`.
"""

import time
from dataclasses import replace

import click
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaForCausalLM
from transformers.initialization import no_init_weights

from benchmarks.models.bench_model import SHAPES, Shape, llama_config
from container.model.loading.cpu_kernels import load_kernels
from container.model.loading.prepare import prepare
from container.model.reference_check import default_ids

WHOLE = SHAPES["8b"]
# Layers of the second model beyond those of the first.
MORE = 2
COLUMNS = ("layers", "own pass", "checks in layers", "checks in whole", "converting", "whole start")
# Random numbers that weights repeat: drawing all takes longer than what is measured.
NUM_RANDOM = (1 << 22) + 3


@torch.no_grad()
def create(shape: Shape, dtype: torch.dtype) -> LlamaForCausalLM:
    """Create the model with random weights, without a copy in another format."""
    numbers = (torch.randn(NUM_RANDOM, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights():
            model = LlamaForCausalLM(llama_config(shape)).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.fill_(1)
            continue
        for part in parameter.view(-1).split(NUM_RANDOM):
            part.copy_(numbers[: len(part)])
    return model


def measure(shape: Shape, dtype: torch.dtype, quantize: str | None) -> tuple[float, ...]:
    """Return seconds: one pass of the model's own, then those of COLUMNS for preparing it."""
    model = create(shape, dtype)
    ids = torch.tensor([default_ids(model.config)])
    with torch.inference_mode():
        model(input_ids=ids)
        started = time.perf_counter()
        model(input_ids=ids)
        own = time.perf_counter() - started
    kernels = load_kernels()
    started = time.perf_counter()
    loaded = prepare(model, dtype, torch.device("cpu"), cpu_kernels=kernels, quantize=quantize)
    total, times = time.perf_counter() - started, loaded.times
    assert times is not None, loaded.fallbacks
    return own, times.layers_s, times.whole_s, times.converting_s, total


@click.command()
@click.option("--layers", default=3, show_default=True, type=click.IntRange(3))
@click.option("--dtype", default="bfloat16", type=click.Choice(["bfloat16", "float32"]))
@click.option("--quantize", type=click.Choice(["int8", "int4"]))
@click.option("--processor-time", is_flag=True, help="Count processor seconds: on a busy machine.")
def main(layers: int, dtype: str, quantize: str | None, *, processor_time: bool) -> None:
    """Measure the start's check at 8B shapes."""
    if processor_time:
        torch.set_num_threads(1)  # threads that wait for each other would count, too
        time.perf_counter = time.process_time
    format_ = getattr(torch, dtype)
    measure(SHAPES["tiny"], format_, quantize)  # imports, first calls
    few, many = (
        measure(replace(WHOLE, layers=count), format_, quantize)
        for count in (layers, layers + MORE)
    )
    table = Table(*(f"{name}, s" if name != "layers" else name for name in COLUMNS))
    table.add_row(str(layers), *(f"{seconds:.2f}" for seconds in few))
    table.add_row(str(layers + MORE), *(f"{seconds:.2f}" for seconds in many))
    each = [(more - less) / MORE for less, more in zip(few, many, strict=True)]
    whole = [
        more + (WHOLE.layers - layers - MORE) * more_each
        for more, more_each in zip(many, each, strict=True)
    ]
    table.add_row(f"{WHOLE.layers}, extrapolated", *(f"{seconds:.2f}" for seconds in whole))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
