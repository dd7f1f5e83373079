"""The engine's state and its step: schedule, run, update. Synchronous, without sockets.

On a device that computes asynchronously, a step begins before the output of the previous one is
read, so that the device always has work:

    device   | pass 1      |s| pass 2      |s| pass 3      |s|           s: samples tokens
    engine   .. plan 2 | read 1, update, s 2, send 1 | plan 3 | read 2, ...

Knows ids, blocks and limits. The engine process (container.engine.process) reads messages, calls
`step` while there is work, and sends the tokens that it returns.
"""

import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass

from container.engine.adapters import NO_ADAPTER, Adapters
from container.engine.block_pool import BlockPool
from container.engine.model_runner import ModelRunner, PendingStep, Sampled
from container.engine.schedule import Batch
from container.engine.scheduler import Scheduler
from container.engine.sequence import Sequence
from container.engine.step_stats import ActiveStep, StepRecorder
from container.engine.structured_output import CompileGrammar, Constraint
from container.errors import (
    GenerationFailed,
    InvalidParameter,
    NotFound,
    Overloaded,
    PromptTooLong,
    ServingError,
    UnsupportedParameter,
)
from container.messages.engine import (
    EngineLoad,
    FinishReason,
    PromptFacts,
    SamplingParams,
    Submit,
    TokenEvent,
)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes of the engine, in tokens, blocks and requests.

    `num_slots`: number of KV blocks that host memory holds for offloading.
    """

    block_size: int
    num_blocks: int
    max_batch_tokens: int
    max_running: int
    max_input_tokens: int
    max_total_tokens: int
    max_requests: int = 128
    vocabulary: int = 2**31
    reuses_prefixes: bool = True
    scores_prompts: bool = True
    speculate: int = 0
    num_slots: int = 0

    def __post_init__(self) -> None:
        """Check that a longest sequence fits the cache; it could never finish otherwise."""
        if self.max_total_tokens > self.num_blocks * self.block_size:
            raise ValueError(
                f"max_total_tokens is {self.max_total_tokens}, but the KV cache holds only "
                f"{self.num_blocks * self.block_size} tokens: lower it or add blocks"
            )


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
        compile_grammar: CompileGrammar | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        self.config = config
        self._runner = runner
        self.adapters = adapters
        self.scheduler = Scheduler(
            BlockPool(config.num_blocks, config.block_size, config.num_slots),
            max_batch_tokens=config.max_batch_tokens,
            max_running=config.max_running,
            end_token_ids=end_token_ids,
            reuses_prefixes=config.reuses_prefixes,
            speculate=config.speculate,
        )
        self._requests: dict[tuple[bytes, int], list[Sequence]] = {}
        self._compile_grammar = compile_grammar
        self._compiling: list[tuple[Future[Constraint], list[Sequence]]] = []
        self._failures: list[tuple[bytes, int, ServingError]] = []
        self._recorder = StepRecorder()
        # A draft is proposed from the tokens before it, so they must have been read.
        self._overlaps = runner.overlaps and config.speculate == 0
        self._in_flight: _InFlightStep | None = None
        self._events: list[tuple[bytes, TokenEvent]] = []

    @property
    def has_work(self) -> bool:
        """Whether there is an unfinished request, a step to read or an event to send."""
        return bool(self._requests or self._events or self._in_flight is not None)

    @property
    def only_compiles(self) -> bool:
        """Whether every unfinished request waits for its grammar to compile."""
        return bool(self._requests) and not len(self.scheduler)

    @property
    def load(self) -> EngineLoad:
        """Current load, and counters since the start."""
        pool, running = self.scheduler.pool, self.scheduler.running
        return EngineLoad(
            running=len(running),
            waiting=len(self.scheduler.waiting),
            max_tokens=sum(
                sequence.prompt_len + sequence.params.max_new_tokens for sequence in running
            ),
            blocks_used=pool.num_used,
            blocks_total=pool.num_blocks,
            preemptions=self.scheduler.num_preemptions,
            cached_tokens=self.scheduler.num_cached_tokens,
            blocks_cached=pool.num_cached,
            blocks_on_host=pool.num_offloaded,
            restored_tokens=self.scheduler.num_restored_tokens,
            drafted_tokens=self.scheduler.num_drafted_tokens,
            accepted_tokens=self.scheduler.num_accepted_tokens,
            steps=self._recorder.read(),
        )

    def submit(self, frontend_id: bytes, message: Submit) -> None:
        """Admit a request. Raises Overloaded, PromptTooLong or InvalidParameter."""
        if len(self._requests) >= self.config.max_requests:
            raise Overloaded(
                f"the server already has {self.config.max_requests} requests "
                "(MAX_CONCURRENT_REQUESTS)",
                retry_after_s=1,
            )
        if message.params.prompt_logprobs and not self.config.scores_prompts:
            raise InvalidParameter(
                "this model reads the prompt with an encoder, which gives its tokens no "
                "log-probabilities: leave out decoder_input_details"
            )
        self._check_lengths(message)
        compiling = self._start_compiling(message.params.grammar)
        adapter = self._acquire(message.adapter)
        sequences: list[Sequence] = []
        for seq_index in range(message.num_sequences):
            sequence = Sequence(
                message.request_id,
                message.prompt_ids,
                message.params,
                frontend_id=frontend_id,
                arrived_at=time.monotonic(),
                prefill_parent=sequences[0] if sequences else None,
                seq_index=seq_index,
                images=message.images,
                adapter=adapter,
                session=message.session,
                session_s=message.session_s,
            )
            sequences.append(sequence)
        self._requests[frontend_id, message.request_id] = sequences
        if compiling is not None:
            self._compiling.append((compiling, sequences))
            return
        for sequence in sequences:
            self.scheduler.add(sequence)

    def abort(self, frontend_id: bytes, request_id: int, seq_index: int | None = None) -> None:
        """Abort a request, or one sequence of it; an unknown one has already finished."""
        sequences = self._requests.get((frontend_id, request_id), [])
        for sequence in sequences:
            is_selected = seq_index is None or sequence.seq_index == seq_index
            if is_selected and sequence.finish_reason is None:
                self.scheduler.remove(sequence, FinishReason.ABORTED)
        if sequences:
            self._forget(sequences[0])

    def abort_all(self, frontend_id: bytes | None = None) -> list[tuple[bytes, int]]:
        """Abort all requests, or all of one frontend; return their keys."""
        keys = [key for key in self._requests if frontend_id is None or key[0] == frontend_id]
        for key in keys:
            self.abort(*key)
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
        except Exception:
            # Events of an earlier step stay queued; the next step returns them.
            self._recorder.fail()
            raise
        events, self._events = self._events, []
        return events

    def _step(self) -> None:
        last, self._in_flight = self._in_flight, None
        self._take_compiled()
        batch = self.scheduler.schedule()
        if not batch.items:
            self._finish_step(last)
            return
        begun = self._recorder.begin(batch)
        step = self._runner.execute(batch)
        self._finish_step(last)
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
        for sequence, token, reason in self.scheduler.update_from_output(in_flight.batch, output):
            if sequence.constraint is not None and sequence.constraint.error:
                # llguidance reports that a grammar is too complex only while matching.
                error = GenerationFailed(f"the grammar failed: {sequence.constraint.error}")
                self._fail(sequence, error)
            else:
                self._events.append((sequence.frontend_id, self._event(sequence, token, reason)))
        self._recorder.end(in_flight.begun)

    def run_self_test(self) -> None:
        """Self-test: decode one token of a dummy request. Raises whatever the step raises."""
        self.scheduler.check_invariants()
        self.scheduler.pool.reset_prefix_cache()
        events, self._events = self._events, []
        self.submit(b"", Submit(0, [0], SamplingParams(max_new_tokens=1)))
        while self.has_work:
            self.step()
        self._events = events

    def take_failures(self) -> list[tuple[bytes, int, ServingError]]:
        """Return and clear the requests that failed in the last step."""
        failures, self._failures = self._failures, []
        return failures

    def _start_compiling(self, grammar: str) -> Future[Constraint] | None:
        if not grammar:
            return None
        if self._compile_grammar is None:
            raise UnsupportedParameter("grammar is not supported by this model's tokenizer")
        return self._compile_grammar(grammar)

    def _take_compiled(self) -> None:
        """Queue the requests whose grammar has compiled, and fail those whose grammar has not."""
        if not self._compiling:
            return
        done = [entry for entry in self._compiling if entry[0].done()]
        self._compiling = [entry for entry in self._compiling if not entry[0].done()]
        for future, sequences in done:
            # The others were aborted while the grammar compiled.
            waiting = [sequence for sequence in sequences if sequence.finish_reason is None]
            try:
                constraint = future.result()
            except ServingError as error:
                for sequence in waiting[:1]:
                    self._fail(sequence, error)
                continue
            for sequence in waiting:
                sequence.constraint = constraint.copy()
                self.scheduler.add(sequence)

    def _fail(self, sequence: Sequence, error: ServingError) -> None:
        """Abort a sequence's whole request with an error, reported once."""
        if sequence.key not in self._requests:
            return
        self.abort(*sequence.key)
        self._failures.append((*sequence.key, error))

    def _event(self, sequence: Sequence, token: Sampled, reason: FinishReason | None) -> TokenEvent:
        if reason is not None:
            self._forget(sequence)
        return TokenEvent(
            sequence.request_id,
            sequence.seq_index,
            token.token_id,
            token.logprob,
            reason,
            list(token.top),
            _prompt_facts(sequence) if sequence.completion_len == 1 else None,
        )

    def _forget(self, sequence: Sequence) -> None:
        """Remove a sequence's request once all of its sequences have finished."""
        siblings = self._requests.get(sequence.key, [])  # several may finish in one step
        if not all(sibling.finish_reason is not None for sibling in siblings):
            return
        if self._requests.pop(sequence.key, None) and sequence.adapter != NO_ADAPTER:
            assert self.adapters is not None, "an adapter id without an adapter store"
            self.adapters.release(sequence.adapter)

    def _acquire(self, adapter: str) -> int:
        if not adapter:
            return NO_ADAPTER
        if self.adapters is None:
            raise NotFound("this model takes no adapters", field="adapter")
        return self.adapters.acquire(adapter)

    def _check_lengths(self, message: Submit) -> None:
        # Frontends check the same and name the client's fields; this protects the engine's memory.
        num_tokens, new_tokens = len(message.prompt_ids), message.params.max_new_tokens
        if num_tokens == 0:
            raise InvalidParameter("the prompt has no tokens")
        if new_tokens < 1:
            raise InvalidParameter("max_new_tokens must be at least 1")
        config = self.config
        if not 0 <= min(message.prompt_ids) <= max(message.prompt_ids) < config.vocabulary:
            raise InvalidParameter(f"the prompt has ids outside 0 to {config.vocabulary - 1}")
        if num_tokens > config.max_input_tokens:
            raise PromptTooLong(
                f"the prompt has {num_tokens} tokens; the limit is {config.max_input_tokens}"
            )
        if num_tokens + new_tokens > config.max_total_tokens:
            raise PromptTooLong(
                f"{num_tokens} prompt tokens and {new_tokens} new ones are more than "
                f"{config.max_total_tokens}"
            )


def _prompt_facts(sequence: Sequence) -> PromptFacts:
    started_at = sequence.started_at or sequence.arrived_at
    return PromptFacts(
        started_at - sequence.arrived_at, sequence.num_cached, sequence.prompt_logprobs
    )
