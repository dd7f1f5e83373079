"""Measures how long the start's reference check takes for a model of 8B shapes, by extrapolation.

.venv/bin/python -m benchmarks.start_check: prepares random Llama models with the layers of an 8B
model, a few and twice as many, as the server does. What a layer adds to the time, times the layers
that are missing, gives the time of the whole model. `own pass` is one forward pass of the model
with the check's ids: the checks run a few of them whole, and the checked layers alone otherwise.
Packing weights and replacing layers, which are no checks, are in `converting`.
"""

import time
from dataclasses import replace

import click
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaForCausalLM

from benchmarks.models.bench_model import SHAPES, Shape, llama_config
from container.model.loading.cpu_kernels import load_kernels
from container.model.loading.prepare import prepare
from container.model.reference_check import default_ids

WHOLE = SHAPES["8b"]
COLUMNS = ("layers", "own pass", "checks in layers", "checks in whole", "converting", "whole start")


def create(shape: Shape, dtype: torch.dtype) -> LlamaForCausalLM:
    """Create the model with random weights, without a copy in another format."""
    torch.set_default_dtype(dtype)
    try:
        return LlamaForCausalLM(llama_config(shape)).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def measure(shape: Shape, dtype: torch.dtype, *, int8: bool) -> tuple[float, ...]:
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
    loaded = prepare(
        model, dtype, torch.device("cpu"), cpu_kernels=kernels, quantize="int8" if int8 else None
    )
    total, times = time.perf_counter() - started, loaded.times
    assert times is not None, loaded.fallbacks
    return own, times.layers_s, times.whole_s, times.converting_s, total


@click.command()
@click.option("--layers", default=4, show_default=True, type=click.IntRange(3))
@click.option("--dtype", default="bfloat16", type=click.Choice(["bfloat16", "float32"]))
@click.option("--int8", is_flag=True, help="With QUANTIZE=int8.")
def main(layers: int, dtype: str, *, int8: bool) -> None:
    """Measure the start's check at 8B shapes."""
    format_ = getattr(torch, dtype)
    measure(SHAPES["tiny"], format_, int8=int8)  # imports, first calls
    few, many = (
        measure(replace(WHOLE, layers=count), format_, int8=int8) for count in (layers, 2 * layers)
    )
    table = Table(*(f"{name}, s" if name != "layers" else name for name in COLUMNS))
    table.add_row(str(layers), *(f"{seconds:.2f}" for seconds in few))
    table.add_row(str(2 * layers), *(f"{seconds:.2f}" for seconds in many))
    each = [(more - less) / layers for less, more in zip(few, many, strict=True)]
    whole = [
        more + (WHOLE.layers - 2 * layers) * more_each
        for more, more_each in zip(many, each, strict=True)
    ]
    table.add_row(f"{WHOLE.layers}, extrapolated", *(f"{seconds:.2f}" for seconds in whole))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
