"""The engine's state and its step: schedule, run, update. Synchronous, without sockets.

On a device that computes asynchronously, a step begins before the output of the previous one is
read, so that the device always has work:

    device   | pass 1      |s| pass 2      |s| pass 3      |s|           s: samples tokens
    engine   .. plan 2 | read 1, update, s 2, send 1 | plan 3 | read 2, ...

Knows ids, blocks and limits. The engine process (container.engine.process) reads messages, calls
`step` while there is work, and sends the tokens that it returns.
"""

import logging
from collections.abc import Container, Iterable
from dataclasses import dataclass

from container.engine.adapters import Adapters
from container.engine.blocks.kv_cache_manager import KVCacheManager
from container.engine.config import EngineConfig
from container.engine.fault_isolation import FailedStep, FaultIsolation
from container.engine.model_runner import ModelRunner, PendingStep, Sampled
from container.engine.requests import Failure, PromptPreparation, UnfinishedRequests
from container.engine.schedule import Batch
from container.engine.scheduler import NewToken, Scheduler
from container.engine.sequence import RequestKey, Sequence
from container.engine.step_stats import ActiveStep, StepRecorder
from container.engine.structured_output import Grammars, StructuredOutput
from container.errors import GenerationFailed
from container.messages.engine import (
    EngineLoad,
    FinishReason,
    PromptStats,
    SamplingParams,
    Submit,
    TokenEvent,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _InFlightStep:
    """A step that has sampled, but whose output is not read yet."""

    batch: Batch
    step: PendingStep
    begun: ActiveStep


class Engine:
    """Owns the scheduler and calls the model runner; one thread uses it."""

    def __init__(
        self,
        runner: ModelRunner,
        config: EngineConfig,
        *,
        end_token_ids: Iterable[int],
        grammars: Grammars | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        self.runner = runner
        self.scheduler = Scheduler(
            KVCacheManager.from_config(config),
            max_batch_tokens=config.max_batch_tokens,
            max_running=config.max_running,
            end_token_ids=end_token_ids,
            speculate=config.speculate,
        )
        self._isolation = FaultIsolation(self.scheduler)
        self._structured = StructuredOutput(grammars, self.scheduler)
        self.requests = UnfinishedRequests(
            config, self.scheduler, self._structured, self._isolation, adapters,
            PromptPreparation(runner, self.scheduler),
        )  # fmt: skip
        self._begun_batches: list[Batch] = []  # of the steps that may have failed
        self._ran_out_of_memory = False
        self._recorder = StepRecorder()
        # A draft is proposed from the tokens before it, so they must have been read.
        self._overlaps = runner.overlaps and config.speculate == 0
        self._in_flight: _InFlightStep | None = None
        self._events: list[tuple[bytes, TokenEvent]] = []

    @property
    def adapters(self) -> Adapters | None:
        """The registered adapters; None if the model takes none."""
        return self.requests.adapters

    @property
    def has_work(self) -> bool:
        """Whether there is an unfinished request, a step to read or an event to send."""
        return bool(self.requests or self._events or self._in_flight is not None)

    @property
    def has_failures(self) -> bool:
        """Whether `take_failures` has something to return."""
        return self.requests.has_failures

    @property
    def has_scheduled(self) -> bool:
        """Whether a request is ready for steps, rather than waiting for a grammar or an adapter."""
        return not all(sequence.is_deferred for sequence in self.scheduler)

    @property
    def load(self) -> EngineLoad:
        """Current load, and counters since the start."""
        kv_cache, running = self.scheduler.kv_cache, self.scheduler.running
        pool, states = kv_cache.pool, kv_cache.states
        return EngineLoad(
            running=len(running),
            waiting=len(self.scheduler.waiting),
            max_tokens=sum(
                sequence.prompt_len + sequence.params.max_new_tokens for sequence in running
            ),
            blocks_used=pool.num_used,
            blocks_total=pool.num_blocks,
            preemptions=self.scheduler.num_preemptions,
            cached_tokens=kv_cache.num_cached_tokens,
            blocks_cached=pool.num_cached,
            blocks_on_host=pool.num_offloaded,
            restored_tokens=kv_cache.num_restored_tokens,
            drafted_tokens=self.scheduler.num_drafted_tokens,
            accepted_tokens=self.scheduler.num_accepted_tokens,
            steps=self._recorder.read(),
            requests=self.requests.num_interactive,
            state_slots_used=states.num_used if states is not None else 0,
            state_slots_total=states.num_slots if states is not None else 0,
            state_snapshots=len(states.snapshots) if states is not None else 0,
        )

    def submit(self, frontend_id: bytes, message: Submit) -> None:
        """Admit a request. Raises Overloaded, PromptTooLong or InvalidParameter."""
        self.requests.submit(frontend_id, message)

    def abort(self, frontend_id: bytes, request_id: int, seq_index: int | None = None) -> None:
        """Abort a request, or one sequence of it; an unknown one has already finished."""
        self.requests.abort(frontend_id, request_id, seq_index)

    def abort_all(self, frontend_id: bytes | None = None) -> list[RequestKey]:
        """Abort all requests, or all of one frontend; return their keys."""
        keys = self.requests.keys(frontend_id)
        for key in keys:
            self.requests.abort(*key)
        aborted = set(keys)
        self._events = [
            event for event in self._events if (event[0], event[1].request_id) not in aborted
        ]
        return keys

    def step(self) -> list[tuple[bytes, TokenEvent]]:
        """Begin one step and finish one: the same step, unless steps overlap.

        Returns each new token with the id of its frontend.
        """
        try:
            self._step()
        except BaseException as error:
            # Events of an earlier step stay queued; the next step returns them.
            self._recorder.fail()
            self._ran_out_of_memory = isinstance(error, MemoryError)
            raise
        events, self._events = self._events, []
        return events

    def _step(self) -> None:
        last, self._in_flight = self._in_flight, None
        self._begun_batches = [last.batch] if last is not None else []
        self.requests.poll()
        self._read_structured()
        self._isolation.restore_limits()
        self._run_batch(last, self._isolation.on_trial)

    def _run_batch(
        self, last: _InFlightStep | None, only: Container[RequestKey] | None = None
    ) -> None:
        """Begin a step, of these requests only, and finish the last one, or this one."""
        if self.runner.samples_in_execute:
            self._structured.defer_late()
        batch = self.scheduler.schedule(only)
        if not batch.items:
            self._finish_step(last)
            return
        self._begun_batches.append(batch)
        begun = self._recorder.begin(batch)
        step = self.runner.execute(batch)
        self._finish_step(last)
        if not self.runner.samples_in_execute:
            batch = self._structured.without_late(batch)
        batch = batch.without_stale()
        self.scheduler.update_after_schedule(batch)
        step.sample(batch)
        in_flight = _InFlightStep(batch, step, begun)
        if self._overlaps:
            self._in_flight = in_flight
        else:
            self._finish_step(in_flight)

    def _finish_step(self, in_flight: _InFlightStep | None) -> None:
        """Wait for the in-flight step and append its sampled tokens to their sequences."""
        if in_flight is None:
            return
        output = in_flight.step.get_output()
        self._recorder.tokens_are_read(in_flight.begun)
        new_tokens = self.scheduler.update_from_output(in_flight.batch, output)
        self._emit(self._structured.resolve(new_tokens))
        for sequence, _, _ in new_tokens:
            self._isolation.clear(sequence.key)
        self._recorder.end(in_flight.begun)

    def _read_structured(self) -> None:
        """Process the answers of the grammar processes."""
        has_steps = self.has_scheduled or self.requests.is_loading
        waits = bool(self.requests) and not has_steps
        self._emit(self._structured.read(waits=waits))
        for sequence, error in self._structured.take_failures():
            self.requests.fail(sequence.key, error)

    def _emit(self, new_tokens: list[NewToken]) -> None:
        for sequence, token, reason in new_tokens:
            self._events.append((sequence.frontend_id, self._event(sequence, token, reason)))

    def recover(self) -> None:
        """After a failed step: check the engine and look for the request to blame.

        No token is lost: the sequences are computed again, apart from each other until it is known
        which of them fails. Raises what the self-test raises: then only a new process can help.
        """
        failed = FailedStep(self._begun_batches, self._ran_out_of_memory)
        self._in_flight, self._begun_batches = None, []
        self.scheduler.preempt_all()
        self.run_self_test()
        if not failed.batches:
            raise RuntimeError("a step failed before its batch began; the cause is in the log")
        if not failed.suspects:
            return  # they have all been aborted
        to_blame = self._isolation.suspect(failed)
        if to_blame is None:
            log.warning("engine: %d requests of the failed step run apart", len(failed.suspects))
            return
        log.error("engine: request %d makes steps fail, it ends with an error", to_blame[1])
        error = GenerationFailed("the model failed on this request; the cause is in the log")
        self.requests.fail(to_blame, error)

    def run_self_test(self) -> None:
        """Decode one token of a dummy request. Raises the exception of the step."""
        self.scheduler.check_invariants()
        self.scheduler.kv_cache.reset_prefix_cache()
        events, self._events = self._events, []
        dummy = self.requests.config.make_sequence(0, [0], SamplingParams(max_new_tokens=1))
        self.scheduler.add(dummy)
        while dummy.finish_reason is None:
            last, self._in_flight = self._in_flight, None
            self._run_batch(last, {dummy.key})
        self._finish_step(self._in_flight)
        self._in_flight, self._events = None, events

    def take_failures(self) -> list[Failure]:
        """Return and clear the requests that failed in the last step."""
        return self.requests.take_failures()

    def _event(self, sequence: Sequence, token: Sampled, reason: FinishReason | None) -> TokenEvent:
        if reason is not None:
            self.requests.forget(sequence.key)
        return TokenEvent(
            sequence.request_id,
            sequence.seq_index,
            token.token_id,
            token.logprob,
            reason,
            list(token.top),
            _prompt_stats(sequence) if sequence.completion_len == 1 else None,
        )


def _prompt_stats(sequence: Sequence) -> PromptStats:
    started_at = sequence.started_at or sequence.arrived_at
    return PromptStats(
        started_at - sequence.arrived_at,
        sequence.num_cached,
        sequence.prompt_logprobs,
        sequence.prompt_tops,
    )
