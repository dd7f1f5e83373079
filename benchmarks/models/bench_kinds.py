"""Measures a model of each kind over HTTP with 1 and 8 clients, beside transformers' `generate`.

make bench-models, or: .venv/bin/python -m benchmarks.models.bench_kinds --size tiny
`generate` gets the prompts of all clients as one batch. README.md tells the method.
"""

import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks.load import generator, routes
from benchmarks.models import bench_model, kinds
from benchmarks.system import machine, processes

CLIENTS = (1, 8)
# A batch of clients should make at least so many times the tokens of one client.
BAR = 3.0
OURS, PEER = "ours", "generate"


class Peer:
    """transformers' `generate` on batches, in this process."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

        is_pair = AutoConfig.from_pretrained(folder).is_encoder_decoder
        auto_class: Any = AutoModelForSeq2SeqLM if is_pair else AutoModelForCausalLM
        self._torch = torch
        self._model = auto_class.from_pretrained(folder, dtype=torch.float32).eval()

    def tokens_per_s(self, prompts: list[list[int]], new_tokens: int) -> float:
        """Generate after a batch of prompts of one length."""
        ids = self._torch.tensor(prompts)
        started = time.perf_counter()
        self._model.generate(
            ids, attention_mask=self._torch.ones_like(ids), max_new_tokens=new_tokens,
            min_new_tokens=new_tokens, do_sample=False, eos_token_id=None,
        )  # fmt: skip
        return len(prompts) * new_tokens / (time.perf_counter() - started)


def measure(
    kind: str, *, size: str, rounds: int, prompt_tokens: int, new_tokens: int, has_peer: bool
) -> dict[str, Any]:
    """Measure one kind; return the tokens per second of each side and level."""
    folder = kinds.model_folder(kind, size)
    numbers = random.Random(0)
    peer = Peer(folder) if has_peer else None
    speeds: dict[str, dict[int, list[float]]] = {
        side: {clients: [] for clients in CLIENTS} for side in (OURS, PEER)[: 1 + has_peer]
    }
    with processes.running_server(folder, {"DTYPE": "float32"}) as (url, _):
        info = processes.get_json(f"{url}/info")
        target = generator.Target(url, routes.GenerateRoute())
        for number in range(rounds + 1):  # the first one warms up
            for clients in CLIENTS:
                prompts = [
                    bench_model.random_prompt(numbers, prompt_tokens) for _ in range(clients)
                ]
                texts = [[bench_model.as_text(prompt)] for prompt in prompts]
                round_ = generator.run_round(target, texts, new_tokens, ping=False)
                turn = {OURS: round_.tokens_per_s}
                if peer is not None:
                    turn[PEER] = peer.tokens_per_s(prompts, new_tokens)
                for side, speed in turn.items() if number else ():
                    speeds[side][clients].append(speed)
    return {"attention": info["attention"], "tokens_per_s": speeds} | _medians(speeds)


def _medians(speeds: dict[str, dict[int, list[float]]]) -> dict[str, Any]:
    medians = {
        side: {clients: statistics.median(values) for clients, values in levels.items()}
        for side, levels in speeds.items()
    }
    few, many = CLIENTS
    result = {"medians": medians, "batching": medians[OURS][many] / medians[OURS][few]}
    if PEER in medians:
        result["beside_generate"] = {
            clients: medians[OURS][clients] / medians[PEER][clients] for clients in CLIENTS
        }
    return result


def table(results: dict[str, dict[str, Any]]) -> str:
    """Format results as a table in Markdown."""
    few, many = CLIENTS
    lines = [
        f"| Kind | attention | {few} client, tok/s | {many} clients | ratio | `generate`, 1 | 8 |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, result in results.items():
        ours, peer = (result["medians"].get(side, {}) for side in (OURS, PEER))
        cells = [f"{ours[clients]:.0f}" for clients in CLIENTS]
        beside = [f"{peer[clients]:.0f}" if peer else "" for clients in CLIENTS]
        ratio = f"{result['batching']:.1f}"
        lines.append(f"| {' | '.join([kind, result['attention'], *cells, ratio, *beside])} |")
    return "\n".join(lines)


def _chosen(names: str) -> list[str]:
    """Return the kinds with one of the names in theirs; all for none. Raises BadParameter."""
    parts = [part.strip() for part in names.split(",")]  # an empty one is in every name
    for part in parts:
        if not any(part in kind for kind in kinds.KINDS):
            known = "; ".join(kinds.KINDS)
            raise click.BadParameter(f"{part!r} is in none of {known}", param_hint="--kinds")
    return [kind for kind in kinds.KINDS if any(part in kind for part in parts)]


@click.command()
@click.option("--kinds", "names", default="", help="Parts of their names, with commas between.")
@click.option("--size", default="mid", type=click.Choice(list(kinds.SIZES)), show_default=True)
@click.option("--rounds", default=3, type=click.IntRange(1), show_default=True)
@click.option("--prompt-tokens", default=128, type=click.IntRange(1, 1024), show_default=True)
@click.option("--new-tokens", default=64, type=click.IntRange(2, 512), show_default=True)
@click.option("--no-peer", is_flag=True, help="Measure our side only.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write results here.")
def main(names: str, no_peer: bool, json_file: Path | None, **options: Any) -> None:
    """Measure how batching pays for each kind of model."""
    processes.unwind_on_signals()
    console = Console(width=160)
    results: dict[str, dict[str, Any]] = {}
    for kind in _chosen(names):
        console.print(f"measuring {kind}")
        results[kind] = measure(kind, has_peer=not no_peer, **options)
        if json_file is not None:  # whatever happens later
            data = {"machine": machine.describe(), "options": options, "kinds": results}
            json_file.write_text(json.dumps(data, indent=2) + "\n")
    print(table(results))
    for kind, result in results.items():
        if result["batching"] < BAR:
            console.print(f"{kind}: {result['batching']:.1f} times, less than {BAR}")


if __name__ == "__main__":
    main()
