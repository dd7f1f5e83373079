"""How long a step takes: the engine alone, the 135M shape, 1, 8 and 32 sequences side by side.

`GOMP_SPINCOUNT=2000 python -m benchmarks.steps`, as the supervisor sets it. For each number of
sequences: their prompts of 128 tokens in tokens a second, then the fastest and the median step of
64 tokens each, then completion tokens a second of the whole run; of several turns the best. Every
turn has other prompts, so that no prefix is found in the cache.
"""

import argparse
import random
import statistics
import time
from dataclasses import dataclass

import torch

from benchmarks.models.bench_model import default_folder, is_written, make_model, random_prompt
from container.engine.engine import Engine
from container.messages.engine import SamplingParams, Submit
from container.model.engine_loader import load_engine
from container.settings.engine import EngineSettings
from container.settings.model import ModelSettings
from container.settings.settings import Settings

PROMPT, NEW_TOKENS = 128, 64


@dataclass(frozen=True, slots=True)
class Turn:
    """One run: prompt tokens a second, steps in milliseconds, completion tokens a second."""

    prefill: float
    fastest_ms: float
    median_ms: float
    whole: float


def measure(engine: Engine, clients: int, numbers: random.Random) -> Turn:
    """Serve a number of requests at once."""
    params = SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True)
    for client in range(clients):
        engine.submit(b"", Submit(client, random_prompt(numbers, PROMPT), params))
    started = time.perf_counter()
    begun: set[int] = set()
    while len(begun) < clients:
        begun |= {event.request_id for _, event in engine.step()}
    prompts_s = time.perf_counter() - started
    steps = []
    while engine.has_work:
        before = time.perf_counter()
        is_full = len(engine.step()) == clients
        if is_full:
            steps.append((time.perf_counter() - before) * 1e3)
    whole_s = time.perf_counter() - started
    return Turn(
        clients * PROMPT / prompts_s, min(steps), statistics.median(steps),
        clients * NEW_TOKENS / whole_s,
    )  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--quantize", help="QUANTIZE, such as int4")
    parser.add_argument("--model", help="a model's folder or GGUF file; default: random weights")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    folder = default_folder()
    if not args.model and not is_written(folder):
        make_model(folder)
    settings = Settings(
        model=ModelSettings(
            model_id=args.model or str(folder), dtype=args.dtype, quantize=args.quantize
        ),
        engine=EngineSettings(max_total_tokens=1024),
    )
    engine, _ = load_engine(settings, print)
    numbers = random.Random()
    for clients in args.clients:
        turns = [measure(engine, clients, numbers) for _ in range(args.turns)]
        print(
            f"{clients:>3} sequences: prompts {max(t.prefill for t in turns):.0f} tok/s, "
            f"step {min(t.fastest_ms for t in turns):.2f} ms "
            f"(median {min(t.median_ms for t in turns):.2f}), "
            f"whole {max(t.whole for t in turns):.0f} tok/s"
        )


if __name__ == "__main__":
    main()
