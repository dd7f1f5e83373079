"""Engines for tests: driven by hand, one step at a time, invariants checked after each."""

import dataclasses
from dataclasses import dataclass

import torch

from container.engine.batch import Batch, Sampled, StepOutput
from container.engine.loop import Engine, EngineConfig
from container.messages import SamplingParams, Submit, TokenEvent
from container.model.adapter_store import AdapterStore
from container.model.lora import Updates
from container.model.preparing import make_runner, prepare
from tests.support import tiny_models


@dataclass
class Job:
    """A request and the step at which it comes."""

    prompt: list[int]
    params: SamplingParams
    at_step: int = 0


class ScriptedRunner:
    """Samples the position: the token at index i is i % period + 2, whatever the prompt."""

    def __init__(self, period: int = 100) -> None:
        self.period = period
        self.batches: list[Batch] = []

    def execute(self, batch: Batch) -> StepOutput:
        self.batches.append(batch)
        places = [
            len(item.sequence.token_ids) + ahead
            for item in batch.items
            if item.samples
            for ahead in range(1 + len(item.draft))
        ]
        return StepOutput([Sampled(place % self.period + 2) for place in places])


def engine_config(**overrides: int) -> EngineConfig:
    sizes = {
        "block_size": 4,
        "num_blocks": 64,
        "max_batch_tokens": 32,
        "max_running": 8,
        "max_input_tokens": 200,
        "max_total_tokens": 240,
    }
    return EngineConfig(**sizes | overrides)


def torch_engine(
    name: str,
    dtype: torch.dtype = torch.float32,
    *,
    end_token_ids: tuple[int, ...] = (),
    max_adapters: int = 8,
    **sizes: int,
) -> Engine:
    """An engine with a tiny model prepared as the server prepares it."""
    cpu = torch.device("cpu")
    loaded = prepare(tiny_models.make(name, dtype), dtype, cpu)
    config = dataclasses.replace(
        engine_config(**sizes),
        reuses_prefixes=loaded.attention == "paged",
        scores_prompts=not loaded.has_encoder,
    )
    updates = Updates(loaded.module, dtype, cpu)
    runner = make_runner(loaded, config, end_token_ids=frozenset(end_token_ids), updates=updates)
    store = AdapterStore(updates, max_adapters)
    return Engine(runner, config, end_token_ids=end_token_ids, adapters=store)


def run(engine: Engine, jobs: list[Job]) -> dict[int, list[TokenEvent]]:
    """Submit each job at its step, run until all are done; events by index of the job."""
    events: dict[int, list[TokenEvent]] = {index: [] for index in range(len(jobs))}
    pending = sorted(enumerate(jobs), key=lambda pair: pair[1].at_step)
    step = 0
    while pending or engine.has_work:
        while pending and pending[0][1].at_step <= step:
            index, job = pending.pop(0)
            engine.submit(b"test", Submit(index, job.prompt, job.params))
        for _, event in engine.step():
            events[event.request_id].append(event)
        engine.scheduler.check_invariants()
        step += 1
        assert step < 10_000, "the engine makes no progress"
    return events


def ids(events: list[TokenEvent]) -> list[int]:
    return [event.token_id for event in events]
