"""Runs a level of load: sends the requests when they are due and collects their outcomes."""

import asyncio
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.endpoint.apis import Api, Options
from benchmarks.endpoint.arrivals import Level, poisson
from benchmarks.endpoint.outcome import Outcome
from benchmarks.endpoint.transports import Transport, send
from benchmarks.endpoint.workload import Prompt

THREADS = 256


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go, in which API, and what they have in common."""

    transport: Transport
    api: Api
    options: Options
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Extent:
    """The extent of a level: a number of requests, and the most seconds."""

    requests: int | None = None
    seconds: float | None = None


def run_level(
    endpoint: Endpoint, level: Level, prompts: Iterator[Prompt], extent: Extent, seed: int = 0
) -> tuple[list[Outcome], float]:
    """Run a level; return the outcomes in the order of their sending, and the elapsed seconds."""
    return asyncio.run(_Run(endpoint, level, extent, seed).run(prompts))


class _Run:
    """Owns the outcomes of a level while it runs."""

    def __init__(self, endpoint: Endpoint, level: Level, extent: Extent, seed: int) -> None:
        self._endpoint = endpoint
        self._level = level
        self._extent = extent
        self._seed = seed
        self._outcomes: list[Outcome] = []
        self._start = 0.0

    async def run(self, prompts: Iterator[Prompt]) -> tuple[list[Outcome], float]:
        taken = itertools.islice(prompts, self._extent.requests)
        # The client of SageMaker's runtime blocks a thread for each request.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
        self._start = time.perf_counter()
        try:
            if self._level.clients is not None:
                clients = (self._client(taken) for _ in range(self._level.clients))
                await asyncio.gather(*clients)
            else:
                await self._arrive(taken)
        finally:
            self._endpoint.transport.close()
        return self._outcomes, max((o.ended_at for o in self._outcomes), default=0.0)

    async def _client(self, prompts: Iterator[Prompt]) -> None:
        """Send the next prompt when the last one is answered."""
        for prompt in prompts:
            if self._is_over(self._now()):
                return
            await self._send(prompt, self._now())

    async def _arrive(self, prompts: Iterator[Prompt]) -> None:
        """Send each prompt when it is due, whether or not earlier ones are answered."""
        rate = self._level.rate
        times = itertools.repeat(None) if rate is None else poisson(rate, self._seed)
        slots = asyncio.Semaphore(self._level.most or 10**9)

        async def send_in_slot(prompt: Prompt, due_at: float) -> None:
            async with slots:
                await self._send(prompt, due_at)

        async with asyncio.TaskGroup() as group:
            for prompt, time_ in zip(prompts, times, strict=False):
                due_at = time_ if time_ is not None else prompt.at or 0.0
                if self._is_over(due_at):
                    return
                await asyncio.sleep(due_at - self._now())
                group.create_task(send_in_slot(prompt, due_at))

    async def _send(self, prompt: Prompt, due_at: float) -> None:
        outcome = Outcome(due_at, due_at)
        self._outcomes.append(outcome)
        endpoint = self._endpoint
        try:
            async with asyncio.timeout(endpoint.timeout_s):
                await send(
                    endpoint.transport, endpoint.api, prompt, endpoint.options, outcome, self._start
                )
        except TimeoutError:
            outcome.error, outcome.ended_at = "no answer in time", self._now()

    def _now(self) -> float:
        return time.perf_counter() - self._start

    def _is_over(self, at: float) -> bool:
        return self._extent.seconds is not None and at >= self._extent.seconds
