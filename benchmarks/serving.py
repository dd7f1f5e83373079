"""Measures the server beside transformers' own continuous batching, in one interleaved run.

make bench, or: .venv/bin/python benchmarks/serving.py --levels 1,8 --json result.json
README.md tells the method.
"""

import datetime
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bench_model
import click
import load
import machine
import processes
import report
from figures import Level, Round
from rich.console import Console

SETTLE_S = 0.5
WARM_UP_TOKENS = 16
# Requests of all clients together in a round, and the bounds of what one client sends.
ROUND_REQUESTS = 24
FEWEST, MOST = 2, 6


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run. Prompts are new in every round, and the same for both sides."""

    levels: tuple[int, ...]
    rounds: int
    repeats: int
    requests_per_client: int | None
    prompt_tokens: int
    new_tokens: int
    seed: int

    def prompts(self, clients: int, each: int, draw: int) -> list[list[list[int]]]:
        """Draw the prompts of one round as ids: `each` prompts for each client."""
        numbers = random.Random(f"{self.seed}/{clients}/{draw}")
        return [
            [bench_model.random_prompt(numbers, self.prompt_tokens) for _ in range(each)]
            for _ in range(clients)
        ]

    def requests(self, clients: int) -> int:
        """How many prompts each client sends in a round."""
        if self.requests_per_client is not None:
            return self.requests_per_client
        return min(MOST, max(FEWEST, ROUND_REQUESTS // clients))


class Benchmark:
    """Runs rounds on both sides, never at the same time."""

    def __init__(
        self, plan: Plan, url: str, server_pid: int | None, peer: processes.Peer | None
    ) -> None:
        self._plan = plan
        self._url = url
        self._peer = peer
        self._draws = itertools.count()
        self._trees = {} if server_pid is None else {"server": server_pid}
        if peer is not None:
            self._trees["peer"] = peer.pid

    def measure_level(self, clients: int, console: Console) -> Level:
        """Warm both sides up, then alternate; a pair that others disturbed is repeated."""
        level = Level(clients)
        self._run_pair(clients, 1, min(WARM_UP_TOKENS, self._plan.new_tokens))
        for number in range(1, self._plan.rounds + 1):
            for attempt in range(self._plan.repeats + 1):
                pair = self._run_pair(clients, self._plan.requests(clients), self._plan.new_tokens)
                report.show_pair(console, clients, number, pair)
                if not any(map(report.is_disturbed, pair)) or attempt == self._plan.repeats:
                    break
                level.repeated += 1
            level.add(pair)
        return level

    def _run_pair(self, clients: int, each: int, new_tokens: int) -> list[Round]:
        """Run one round of ours, then one of the peer's if there is one."""
        ids = self._plan.prompts(clients, each, next(self._draws))
        texts = [[bench_model.as_text(prompt) for prompt in client] for client in ids]
        ping = clients == max(self._plan.levels)
        sides = [lambda: load.run_round(self._url, texts, new_tokens, ping=ping)]
        if self._peer is not None:
            run_peer = self._peer.run_round
            sides.append(lambda: run_peer(ids, new_tokens))
        return [self._timed(side, new_tokens) for side in sides]

    def _timed(self, side: Callable[[], Round], new_tokens: int) -> Round:
        time.sleep(SETTLE_S)
        meter = processes.CpuMeter(self._trees)
        round_ = side()
        round_.cores.update(meter.cores())
        if "server" not in self._trees:
            del round_.cores["others"]  # a server that was not started here would be among them
        self._check(round_, new_tokens)
        return round_

    def _check(self, round_: Round, new_tokens: int) -> None:
        """Two sides that do different work must not be compared."""
        wanted = (self._plan.prompt_tokens, new_tokens)
        got = {(stream.prompt_tokens, len(stream.token_at)) for stream in round_.streams}
        if self._peer is not None and got != {wanted}:
            raise load.LoadError(
                f"asked for {wanted} tokens (prompt, completion) and got {sorted(map(str, got))}: "
                "is it the benchmark's model that is served? (--no-peer measures any model)"
            )


def _levels(_: click.Context, __: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        levels = tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter("give numbers of clients, such as 1,8,32") from None
    if min(levels) < 1 or len(set(levels)) < len(levels):
        raise click.BadParameter("numbers of clients are at least 1, and each is given once")
    return levels


@click.command()
@click.option("--levels", default="1,8,32", callback=_levels, help="Concurrent clients.")
@click.option("--rounds", default=3, type=click.IntRange(1), help="Rounds of each side and level.")
@click.option(
    "--repeats", default=3, type=click.IntRange(0), help="Of a pair that others disturbed."
)
@click.option("--no-peer", is_flag=True, help="Measure our side only.")
@click.option("--url", help="A server that already runs, instead of one started for this.")
@click.option(
    "--model-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=bench_model.default_folder(),
    help="Folder of the benchmark's model; made if absent.",
    show_default="in the system's folder for temporary files",
)
@click.option("--requests-per-client", type=click.IntRange(1), help="In a round; default 2 to 6.")
@click.option("--prompt-tokens", default=128, type=click.IntRange(1, 1024))
@click.option("--new-tokens", default=64, type=click.IntRange(2, 1024))
@click.option("--seed", default=0, help="Of the prompts.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write all results here."
)
@click.help_option("-h", "--help")
def main(
    no_peer: bool, url: str | None, model_dir: Path, json_file: Path | None, **plan: Any
) -> None:
    """Measure throughput, latency and /ping of the server, beside transformers' own batching."""
    processes.unwind_on_signals()
    console = report.make_console()
    try:
        result = _run(Plan(**plan), console, no_peer=no_peer, url=url, model_dir=model_dir)
    except (load.LoadError, processes.ChildFailed, OSError) as error:
        raise click.ClickException(str(error)) from error
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n")


def _run(
    plan: Plan, console: Console, *, no_peer: bool, url: str | None, model_dir: Path
) -> dict[str, Any]:
    found = machine.describe()
    started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    if not bench_model.is_made(model_dir) and not (no_peer and url):
        console.print(f"Making the model in {model_dir}")
        processes.make_model(model_dir)
    with ExitStack() as children:
        peer = None if no_peer else children.enter_context(processes.running_peer(model_dir))
        server_pid = None
        if url is None:
            url, server_pid = children.enter_context(processes.running_server(model_dir))
        info = processes.get_json(f"{url}/info")
        benchmark = Benchmark(plan, url, server_pid, peer)
        levels = [benchmark.measure_level(clients, console) for clients in plan.levels]
    report.show(console, levels, found)
    return {
        "started_at": started_at,
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "machine": found,
        "plan": asdict(plan),
        "server": info,
        "peer": peer.facts if peer is not None else None,
        "levels": [level.as_dict() for level in levels],
        "load_average_at_end": os.getloadavg(),
    }


if __name__ == "__main__":
    main()
