"""Runs the rounds of a match: each side in turn, with the CPU time of all."""

import functools
import itertools
import time
from collections.abc import Callable

from rich.console import Console

from benchmarks.load import generator, routes
from benchmarks.load.plan import Model, Plan
from benchmarks.report import tables
from benchmarks.report.figures import OURS, Level, Round
from benchmarks.system import processes

SETTLE_S = 0.5
WARM_UP_TOKENS = 16


class Benchmark:
    """Runs rounds on all sides, never at the same time."""

    def __init__(
        self,
        plan: Plan,
        model: Model,
        url: str,
        server_pid: int | None,
        running: dict[str, processes.Peer],
    ) -> None:
        self._plan = plan
        self._source = model.source
        self._target = generator.Target(url, model.route)
        self._peers = running
        self._draws = itertools.count()
        self._trees = {} if server_pid is None else {OURS: server_pid}
        self._trees |= {name: peer.pid for name, peer in running.items()}

    def measure_level(self, clients: int, console: Console) -> Level:
        """Warm all sides up, then take turns; a turn that others disturbed is repeated."""
        level = Level(clients, {side: [] for side in (OURS, *self._peers)})
        self._take_turn(clients, 1, min(WARM_UP_TOKENS, self._plan.new_tokens))
        for number in range(1, self._plan.rounds + 1):
            for attempt in range(self._plan.repeats + 1):
                turn = self._take_turn(clients, self._plan.requests(clients), self._plan.new_tokens)
                tables.show_turn(console, clients, number, turn)
                disturbed = any(map(tables.is_disturbed, turn.values()))
                if not disturbed or attempt == self._plan.repeats:
                    break
                level.repeated += 1
            level.add(turn)
        return level

    def _take_turn(self, clients: int, each: int, new_tokens: int) -> dict[str, Round]:
        """Run one round of each side, ours first, all on the same prompts."""
        ids = self._plan.prompts(self._source, clients, each, next(self._draws))
        texts = [[self._source.text(prompt) for prompt in client] for client in ids]
        ping = clients == max(self._plan.levels)
        run_ours = functools.partial(
            generator.run_round, self._target, texts, new_tokens, ping=ping
        )
        turn = {OURS: self._timed(run_ours, new_tokens)}
        for name, peer in self._peers.items():
            run_peer = functools.partial(peer.run_round, ids, new_tokens)
            turn[name] = self._timed(run_peer, new_tokens)
        return turn

    def _timed(self, side: Callable[[], Round], new_tokens: int) -> Round:
        time.sleep(SETTLE_S)
        meter = processes.CpuMeter(self._trees)
        round_ = side()
        round_.cores.update(meter.cores())
        if OURS not in self._trees:
            del round_.cores["others"]  # a server that was not started here would be among them
        self._check(round_, new_tokens)
        return round_

    def _check(self, round_: Round, new_tokens: int) -> None:
        """Sides that do different work must not be compared."""
        lengths = (self._plan.prompt_tokens, new_tokens)
        got = {(stream.prompt_tokens, len(stream.token_at)) for stream in round_.streams}
        if self._peers and got != {lengths}:
            raise routes.LoadError(
                f"asked for {lengths} tokens (prompt, completion) and got {sorted(map(str, got))}: "
                "is it the benchmark's model that is served? (--no-peer measures any model)"
            )
