"""Engines for tests: driven by hand, one step at a time, invariants checked after each.

Without torch, which takes seconds to import; `torch_engines` has engines with models.
"""

import time
from dataclasses import dataclass

from container.engine.config import EngineConfig
from container.engine.engine import Engine
from container.engine.model_runner import Sampled, StepOutput, SyncModelRunner
from container.engine.schedule import Batch
from container.messages.engine import SamplingParams, Submit, TokenEvent


@dataclass
class Job:
    """A request and the step at which it comes."""

    prompt: list[int]
    params: SamplingParams
    at_step: int = 0
    adapter: str = ""
    session: str = ""
    session_s: float = 0.0

    def as_request(self, request_id: int) -> Submit:
        return Submit(
            request_id,
            self.prompt,
            self.params,
            adapter=self.adapter,
            session=self.session,
            session_s=self.session_s,
        )


class ScriptedRunner(SyncModelRunner):
    """Samples the position: the token at index i is i % period + 2 for any prompt."""

    def __init__(self, period: int = 100) -> None:
        self.period = period
        self.batches: list[Batch] = []

    def run(self, batch: Batch) -> StepOutput:
        self.batches.append(batch)
        positions = [
            len(item.sequence.token_ids) + ahead
            for item in batch.items
            if item.samples
            for ahead in range(1 + len(item.draft))
        ]
        return StepOutput([Sampled(position % self.period + 2) for position in positions])


class OverlappingRunner:
    """Samples as ScriptedRunner does; asserts that the engine keeps to the order of overlap."""

    overlaps = True
    samples_in_execute = False

    def __init__(self, period: int = 100) -> None:
        self.script = ScriptedRunner(period)
        self.unread = 0
        self.fails_to_sample = False

    def prepare_prompt(self, _: object, *, encodes: bool) -> None:
        """Passes read images themselves."""

    def execute(self, batch: Batch) -> "OverlappingStep":
        assert self.unread <= 1, "more than one step is not read"
        for item in batch.items:
            known = len(item.sequence.token_ids) + (item.sequence.placeholder is not None)
            assert item.end <= known, "a token that nobody has promised"
            assert item.samples == (item.end == known)
        self.unread += 1
        return OverlappingStep(self)


class OverlappingStep:
    def __init__(self, runner: OverlappingRunner) -> None:
        self.runner = runner
        self.output = StepOutput([])

    def sample(self, batch: Batch) -> None:
        if self.runner.fails_to_sample:
            raise RuntimeError("injected")
        for item in batch.items:
            assert not item.is_stale
            if item.samples:
                assert item.end == len(item.sequence.token_ids), "a token is not known yet"
        self.output = self.runner.script.run(batch)

    def get_output(self) -> StepOutput:
        self.runner.unread -= 1
        return self.output


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


def run_sequences(engine: Engine, request: Submit) -> list[list[int]]:
    """Run one request of several sequences; the token ids of each."""
    token_ids: list[list[int]] = [[] for _ in range(request.num_sequences)]
    engine.submit(b"test", request)
    while engine.has_work:
        for _, event in engine.step():
            token_ids[event.seq_index].append(event.token_id)
        engine.scheduler.check_invariants()
    return token_ids


def run(engine: Engine, jobs: list[Job]) -> dict[int, list[TokenEvent]]:
    """Submit each job at its step, run until all are done; events by index of the job."""
    events: dict[int, list[TokenEvent]] = {index: [] for index in range(len(jobs))}
    pending = sorted(enumerate(jobs), key=lambda pair: pair[1].at_step)
    step = 0
    while pending or engine.has_work:
        while pending and pending[0][1].at_step <= step:
            index, job = pending.pop(0)
            engine.submit(b"test", job.as_request(index))
        for _, event in engine.step():
            events[event.request_id].append(event)
        engine.scheduler.check_invariants()
        if not engine.has_scheduled:
            time.sleep(0.001)  # an adapter loads in another thread
        step += 1
        assert step < 10_000, "the engine makes no progress"
    return events


def ids(events: list[TokenEvent]) -> list[int]:
    return [event.token_id for event in events]
