"""Measures one GPU: the engine alone, beside what the device can do and transformers' own batching.

make bench-gpu, or: .venv/bin/python -m benchmarks.gpu --shape 1b --json result.json
Random weights, nothing to download; README.md tells the method. Without a GPU it runs on the CPU,
where `--shape tiny` shows in a minute that everything works.
"""

import contextlib
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.table import Table

from benchmarks.models.bench_model import (
    SHAPES,
    Shape,
    default_folder,
    is_written,
    random_prompt,
    weight_files,
)
from benchmarks.peers.environments import TRANSFORMERS
from benchmarks.report.figures import Round
from benchmarks.report.tables import make_console
from benchmarks.system import machine, processes
from container.engine.engine import Engine
from container.messages.engine import SamplingParams, Submit
from container.model.engine_loader import load_engine
from container.settings.engine import EngineSettings, MemorySettings
from container.settings.model import ModelSettings
from container.settings.settings import Settings

NEW_TOKENS = 64
DECODE_TOKENS = 128
# Small on a CPU, where only the path is tried, and some processors have no bfloat16.
COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}
PRODUCT_SIZE = {"cuda": 8192, "cpu": 128}
READ_AT_ONCE = 1 << 24


@dataclass(frozen=True, slots=True)
class Limits:
    """The speeds of device and disk: bytes and operations a second."""

    memory: float
    products: float
    disk: float


@dataclass(frozen=True, slots=True)
class Alone:
    """The engine beside the limits; the shares are what the goals are about."""

    load_s: float
    load_share: float
    decode_ms: float
    decode_share: float
    prefill_s: float
    prefill_share: float


def median_seconds(work: Any, device: str, turns: int = 9) -> float:
    """Median time of one call, the device's work included."""
    times = []
    for _ in range(turns):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def memory_speed(device: str) -> float:
    """Bytes a second that a copy reads and writes."""
    size = COPY_BYTES[device]
    source = torch.ones(size // 2, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    return 2 * size / median_seconds(lambda: target.copy_(source), device)


def product_speed(device: str) -> float:
    """Operations a second of a large product in bfloat16."""
    size = PRODUCT_SIZE[device]
    one, other = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: torch.mm(one, other), device)


def disk_speed(files: list[Path]) -> float:
    """Bytes a second of reading the weights, after dropping them from the page cache."""
    for file in files:
        with file.open("rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started, total = time.perf_counter(), 0
    for file in files:
        with file.open("rb", buffering=0) as handle:
            while part := handle.read(READ_AT_ONCE):
                total += len(part)
    return total / (time.perf_counter() - started)


def measure_limits(device: str, files: list[Path]) -> Limits:
    """Measure what the engine is compared with."""
    return Limits(memory_speed(device), product_speed(device), disk_speed(files))


def measure_alone(
    engine: Engine, shape: Shape, limits: Limits, load_s: float, prompt: int
) -> Alone:
    """One sequence: its decode against the memory's speed, its prompt against the products'."""
    numbers = random.Random(0)
    steps: list[float] = []
    prefills: list[float] = []
    for _ in range(4):  # the first one warms up
        engine.submit(b"", _request(0, random_prompt(numbers, prompt), DECODE_TOKENS))
        started = time.perf_counter()
        while not engine.step():
            pass
        prefills.append(time.perf_counter() - started)
        steps = []
        while engine.has_work:
            before = time.perf_counter()
            engine.step()
            steps.append(time.perf_counter() - before)
    decode, prefill = statistics.median(steps), statistics.median(prefills[1:])
    read = shape.product_weights * 2 + shape.cache_bytes(prompt + DECODE_TOKENS // 2)
    return Alone(
        load_s,
        shape.parameters * 2 / load_s / limits.disk,
        decode * 1e3,
        read / decode / limits.memory,
        prefill,
        shape.prompt_operations(prompt) / prefill / limits.products,
    )


def serve(engine: Engine, prompts: list[list[list[int]]]) -> float:
    """Completion tokens a second of clients that send their prompts one after another."""
    waiting = [list(client) for client in prompts]
    started, count = time.perf_counter(), 0
    for client, theirs in enumerate(waiting):
        engine.submit(b"", _request(client, theirs.pop(), NEW_TOKENS))
    while engine.has_work:
        for _, event in engine.step():
            count += 1
            if event.finish_reason is not None and waiting[event.request_id]:
                prompt = waiting[event.request_id].pop()
                engine.submit(b"", _request(event.request_id, prompt, NEW_TOKENS))
    return count / (time.perf_counter() - started)


def compare(
    engine: Engine, peer: processes.Peer, levels: list[int], rounds: int, prompt: int
) -> list[dict[str, Any]]:
    """Turn by turn: tokens a second of the engine and of transformers on the same prompts."""
    numbers = random.Random(1)
    results = []
    for clients in levels:
        rates: dict[str, list[float]] = {"ours": [], "transformers": []}
        for turn in range(rounds + 1):  # the first one warms up
            prompts = [[random_prompt(numbers, prompt) for _ in range(2)] for _ in range(clients)]
            ours = serve(engine, prompts)
            made: Round = peer.run_round(prompts, NEW_TOKENS)
            if turn:
                rates["ours"].append(ours)
                rates["transformers"].append(made.tokens_per_s)
        results.append({"clients": clients, "rates": rates})
    return results


def device_name(device: str) -> str:
    """The GPU's name, or the processor's."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return str(machine.describe()["processor"])


def _request(number: int, prompt: list[int], new_tokens: int) -> Submit:
    return Submit(number, prompt, SamplingParams(max_new_tokens=new_tokens, ignore_eos=True))


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@contextlib.contextmanager
def running_transformers(folder: Path, clients: int, prompt: int) -> Iterator[processes.Peer]:
    """Start the peer with room for all clients, on the GPU if there is one."""
    blocks = -(-clients * (prompt + NEW_TOKENS) * 5 // 4 // 32)
    settings = {"num_blocks": blocks, "max_requests_per_batch": clients}
    settings |= {"max_batch_tokens": max(256, clients)}
    command = [sys.executable, "-m", TRANSFORMERS.module, str(folder), json.dumps(settings)]
    with processes.running_peer("transformers", command) as peer:
        yield peer


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--shape", type=click.Choice(sorted(SHAPES)), default="8b", show_default=True)
@click.option("--levels", default="1,32,256", show_default=True, help="Numbers of clients.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--prompt-tokens", type=click.IntRange(1), default=128, show_default=True)
@click.option("--long-prompt", type=click.IntRange(1), default=8192, show_default=True)
@click.option("--no-peer", is_flag=True, help="Leave out transformers.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all results.")
def main(
    shape: str, levels: str, rounds: int, prompt_tokens: int, long_prompt: int, no_peer: bool,
    json_path: Path | None,
) -> None:  # fmt: skip
    """Measure one GPU: the engine beside what the device can do, and beside transformers."""
    processes.unwind_on_signals()
    console = make_console()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        console.print("no GPU here: these are figures of the CPU")
    counts = [int(level) for level in levels.split(",")]
    folder = default_folder(shape)
    if not is_written(folder):
        console.print(f"making the {shape} model in {folder}")
        processes.make_model(folder, shape)
    limits = measure_limits(device, weight_files(folder))
    with contextlib.ExitStack() as stack:
        peer = None
        if not no_peer:  # first, since the engine takes the memory that is left
            peer = stack.enter_context(running_transformers(folder, max(counts), prompt_tokens))
        longest = max(long_prompt + DECODE_TOKENS, prompt_tokens + NEW_TOKENS)
        num_tokens = 2 * max(longest, max(counts) * (prompt_tokens + NEW_TOKENS))
        started = time.perf_counter()
        engine, info = load_engine(
            Settings(
                model=ModelSettings(model_id=str(folder), dtype="bfloat16"),
                engine=EngineSettings(
                    max_total_tokens=longest, max_concurrent_requests=max(counts)
                ),
                memory=MemorySettings(max_batch_total_tokens=num_tokens),
            ),
            console.print,
        )  # fmt: skip
        load_s = time.perf_counter() - started
        alone = measure_alone(engine, SHAPES[shape], limits, load_s, long_prompt)
        compared = [] if peer is None else compare(engine, peer, counts, rounds, prompt_tokens)
    result = {
        "shape": shape,
        "device": device_name(device),
        "torch": torch.__version__,
        "attention": info.attention,
        "limits": asdict(limits),
        "alone": asdict(alone),
        "compared": compared,
    }
    console.print(table(result))
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=1))


def table(result: dict[str, Any]) -> Table:
    """The result for a person; goals are in README.md."""
    alone, limits = result["alone"], result["limits"]
    made = Table(title=f"{result['shape']} on {result['device']}, bfloat16", show_lines=True)
    for name in ("what", "measured", "share of the limit"):
        made.add_column(name)
    made.add_row(
        "decode of one sequence", f"{alone['decode_ms']:.2f} ms a token",
        f"{alone['decode_share']:.2f} of {limits['memory'] / 1e9:.0f} GB/s",
    )  # fmt: skip
    made.add_row(
        "long prompt", f"{alone['prefill_s']:.3f} s",
        f"{alone['prefill_share']:.2f} of {limits['products'] / 1e12:.2f} TFLOP/s",
    )  # fmt: skip
    made.add_row(
        "start, checks included", f"{alone['load_s']:.1f} s",
        f"{alone['load_share']:.2f} of {limits['disk'] / 1e9:.2f} GB/s",
    )  # fmt: skip
    for level in result["compared"]:
        rates = level["rates"]
        ratios = sorted(a / b for a, b in zip(*rates.values(), strict=True))
        ours, theirs = (statistics.median(values) for values in rates.values())
        made.add_row(
            f"{level['clients']} clients", f"{ours:.0f} tok/s, transformers {theirs:.0f}",
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) of it",
        )  # fmt: skip
    return made


if __name__ == "__main__":
    sys.exit(main())
