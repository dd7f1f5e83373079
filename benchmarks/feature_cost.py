"""Measures what sampling features cost at 8 clients: the engine alone, on the benchmark's model.

.venv/bin/python benchmarks/feature_cost.py: whole runs (128 tokens in, 64 out) with a feature and
without, in turns, in one process; the middle of the turns' ratios counts.
"""

import json
import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bench_model
import click

from container.engine.loop import Engine
from container.messages import LogprobMode, SamplingParams, Submit
from container.model.loader import disable_progress_bars, load_engine
from container.settings import Settings

PROMPT, NEW = 128, 64
# 64 bytes at the least, so that the grammar ends no completion early.
REGEX = json.dumps({"grammars": [{"lark_grammar": "start: /[ a-z]+/"}]})
FEATURES = {
    "plain": {},
    "repetition and frequency penalty": {
        "repetition_penalty": 1.2,
        "context_frequency_penalty": 0.2,
    },
    "OpenAI's penalties": {"frequency_penalty": 0.5, "presence_penalty": 0.5},
    "prompt log-probabilities": {"prompt_logprobs": True},
    "log-probabilities, 5 best": {"logprobs": LogprobMode.RAW, "top_logprobs": 5},
    "sampling, top_p": {"temperature": 0.8, "top_p": 0.9},
    "grammar": {"grammar": REGEX, "ignore_eos": True},
}


def whole_run_s(engine: Engine, clients: int, seed: int, **params: object) -> float:
    """The time from the first submission to the last token, in seconds."""
    numbers = random.Random(seed)
    for request in range(clients):
        ids = bench_model.random_prompt(numbers, PROMPT)
        engine.submit(b"", Submit(request, ids, SamplingParams(NEW, seed=request, **params)))
    start, tokens = time.perf_counter(), 0
    while engine.has_work:
        tokens += len(engine.step())
    assert tokens == clients * NEW, f"{tokens} tokens: {params}"
    return time.perf_counter() - start


@click.command()
@click.option("--clients", default=8)
@click.option("--turns", default=7)
def main(clients: int, turns: int) -> None:
    """Print each feature's share of the throughput."""
    disable_progress_bars()
    folder = bench_model.default_folder()
    if not bench_model.is_made(folder):
        bench_model.make_model(folder)
    settings = Settings(model_id=str(folder), dtype="bfloat16", prefix_caching=False)
    engine, _ = load_engine(settings, progress=lambda _: None)
    times: dict[str, list[float]] = {name: [] for name in FEATURES}
    for turn in range(-1, turns):
        for name, params in FEATURES.items():
            seconds = whole_run_s(engine, clients, turn, **params)
            if turn >= 0:
                times[name].append(seconds)
    for name, seconds in times.items():
        ratios = [own / plain for own, plain in zip(seconds, times["plain"], strict=True)]
        fastest = clients * NEW / min(seconds)
        print(
            f"{name:<34} {fastest:6.0f} tok/s at best; "
            f"{statistics.median(ratios) - 1:+6.1%} time (fastest: "
            f"{min(seconds) / min(times['plain']) - 1:+.1%})"
        )


if __name__ == "__main__":
    main()
