"""The unfinished requests: from admission, through the load of an adapter, to the last sequence.

A request waits here until its adapter is loaded and its images are read; then for its grammar
(container.engine.structured_output), and then in the scheduler's queue.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from itertools import compress
from typing import Any, TypeVar

from container.engine.adapters import NO_ADAPTER, Adapters
from container.engine.config import EngineConfig
from container.engine.fault_isolation import FaultIsolation
from container.engine.model_runner import ModelRunner, PromptLayout
from container.engine.scheduler import MAX_PROMPT_LOGPROBS, Scheduler
from container.engine.sequence import RequestKey, Sequence
from container.engine.structured_output import StructuredOutput
from container.errors import GenerationFailed, InvalidParameter, NotFound, ServingError, one_line
from container.messages.engine import FinishReason, Submit

log = logging.getLogger(__name__)

T = TypeVar("T")

# The frontend's id, its number for the request, and why the request ends.
Failure = tuple[bytes, int, ServingError]


class PromptPreparation:
    """Owns the requests whose images are being read, or whose prompts are being encoded."""

    def __init__(self, runner: ModelRunner, scheduler: Scheduler) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._preparing: list[tuple[Future[PromptLayout], list[Sequence]]] = []

    @property
    def is_preparing(self) -> bool:
        """Whether a request waits for its images or its encoder."""
        return bool(self._preparing)

    def begin(self, sequences: list[Sequence]) -> bool:
        """Begin to encode a request's prompt or images; False if there is nothing to wait for."""
        first = sequences[0]
        num_encoded = first.encoder.end or first.image_end
        if not num_encoded:
            return False
        is_cached = self._scheduler.kv_cache.has_cached(first, num_encoded)
        layout = self._runner.prepare_prompt(first, encodes=not is_cached)
        if layout is None:
            return False
        self._preparing.append((layout, sequences))
        return True

    def take_prepared(self) -> list[tuple[list[Sequence], BaseException | None]]:
        """Return the requests that became ready since the last call, with their errors."""
        done = pop_done(self._preparing, lambda entry: entry[0])
        return [(sequences, self._lay_out(layout, sequences)) for layout, sequences in done]

    def _lay_out(
        self, done: "Future[PromptLayout]", sequences: list[Sequence]
    ) -> BaseException | None:
        """Give sequences their layout; return why they cannot run."""
        if (error := done.exception()) is not None:
            return error
        layout = done.result()
        for sequence in sequences:
            sequence.position_shift = layout.position_shift
            sequence.whole_spans = layout.whole_spans
        longest = max((stop - start for start, stop in layout.whole_spans), default=0)
        limit = self._scheduler.max_batch_tokens
        if longest > limit:
            return InvalidParameter(
                f"an image has {longest} tokens, which one step has to compute; the limit is "
                f"{limit} (MAX_BATCH_PREFILL_TOKENS)"
            )
        if longest > MAX_PROMPT_LOGPROBS and sequences[0].params.prompt_logprobs:
            return InvalidParameter(
                f"an image has {longest} tokens; prompts whose images have more than "
                f"{MAX_PROMPT_LOGPROBS} give no log-probabilities: leave out decoder_input_details"
            )
        return None


class UnfinishedRequests:
    """Owns the sequences of each request, its reference to an adapter, and requests that failed."""

    def __init__(
        self,
        config: EngineConfig,
        scheduler: Scheduler,
        structured: StructuredOutput,
        isolation: FaultIsolation,
        adapters: Adapters | None,
        preparation: PromptPreparation,
    ) -> None:
        self.adapters = adapters
        self.config = config
        self._scheduler = scheduler
        self._structured = structured
        self._isolation = isolation
        self._preparation = preparation
        self._sequences: dict[RequestKey, list[Sequence]] = {}
        self._batch_keys: set[RequestKey] = set()
        self._loading: list[tuple[Future[None], list[Sequence]]] = []
        self._failures: list[Failure] = []

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def num_interactive(self) -> int:
        """Requests that are not records of batch bodies."""
        return len(self._sequences) - len(self._batch_keys)

    @property
    def is_loading(self) -> bool:
        """Whether a request waits for its adapter or its images."""
        return bool(self._loading) or self._preparation.is_preparing

    @property
    def has_failures(self) -> bool:
        """Whether `take_failures` has something to return."""
        return bool(self._failures)

    def keys(self, frontend_id: bytes | None = None) -> list[RequestKey]:
        """Return the keys of all requests, or of all of one frontend."""
        return [key for key in self._sequences if frontend_id is None or key[0] == frontend_id]

    def submit(self, frontend_id: bytes, message: Submit) -> None:
        """Admit a request. Raises Overloaded, PromptTooLong or InvalidParameter."""
        num_batch = len(self._batch_keys)
        self.config.check_capacity(self.num_interactive, num_batch, is_batch=message.is_batch)
        self.config.check(message)
        self._structured.check_offered(message.params.grammar)
        sequences = _sequences_of(frontend_id, message, self.config)
        # Last, since a failure after it would leave the adapter acquired.
        loading = self._acquire(message.adapter, sequences)
        self._sequences[frontend_id, message.request_id] = sequences
        if message.is_batch:
            self._batch_keys.add((frontend_id, message.request_id))
        if loading is None:
            self._prepare(sequences)
        else:
            self._loading.append((loading, sequences))

    def abort(self, frontend_id: bytes, request_id: int, seq_index: int | None = None) -> None:
        """Abort a request, or one sequence of it; an unknown one has already finished."""
        sequences = self._sequences.get((frontend_id, request_id), [])
        for sequence in sequences:
            if seq_index is not None and sequence.seq_index != seq_index:
                continue
            self._structured.drop_token(sequence)
            if sequence.finish_reason is None:
                self._scheduler.remove(sequence, FinishReason.ABORTED)
        if sequences:
            self.forget((frontend_id, request_id))

    def fail(self, key: RequestKey, error: ServingError) -> None:
        """Abort a whole request with an error, reported once."""
        if key in self._sequences:
            self.abort(*key)
            self._failures.append((*key, error))

    def take_failures(self) -> list[Failure]:
        """Return and clear the requests that failed in the last step."""
        failures, self._failures = self._failures, []
        return failures

    def poll(self) -> None:
        """Queue the requests whose adapter and images are there, and fail those without."""
        if self.adapters is not None:
            self.adapters.poll()
        for loading, sequences in pop_done(self._loading, lambda entry: entry[0]):
            if (error := loading.exception()) is not None:
                self.fail(sequences[0].key, _client_error(error))
            else:
                self._prepare(sequences)
        for sequences, failure in self._preparation.take_prepared():
            if failure is not None:
                self.fail(sequences[0].key, _client_error(failure))
            else:
                self._queue(sequences)

    def forget(self, key: RequestKey) -> None:
        """Remove a request once all of its sequences have finished."""
        sequences = self._sequences.get(key, [])  # several may finish in one step
        if any(sequence.finish_reason is None or sequence.is_deferred for sequence in sequences):
            return
        self._isolation.clear(key)
        self._batch_keys.discard(key)
        self._structured.forget(sequences)
        if self._sequences.pop(key, None) and sequences[0].adapter != NO_ADAPTER:
            assert self.adapters is not None, "an adapter id without an adapter store"
            self.adapters.release(sequences[0].adapter)

    def _prepare(self, sequences: list[Sequence]) -> None:
        """Queue a request's sequences, once its images have been read."""
        if not self._preparation.begin(sequences):
            self._queue(sequences)

    def _queue(self, sequences: list[Sequence]) -> None:
        """Queue a request's sequences, once their grammar has compiled."""
        grammar = sequences[0].params.grammar
        if all(sequence.finish_reason is not None for sequence in sequences):
            return  # aborted meanwhile
        if grammar:
            self._structured.compile(grammar, sequences)
            return
        for sequence in sequences:
            if sequence.finish_reason is None:
                self._scheduler.add(sequence)

    def _acquire(self, adapter: str, sequences: list[Sequence]) -> "Future[None] | None":
        """Assign a request its adapter; return its loading, if it is not in memory."""
        if not adapter:
            return None
        if self.adapters is None:
            raise NotFound("this model takes no adapters", field="adapter")
        number = self.adapters.acquire(adapter)
        for sequence in sequences:
            sequence.adapter = number
        return self.adapters.loading(number)


def pop_done(entries: list[T], future_of: Callable[[T], "Future[Any]"]) -> list[T]:
    """Remove and return the entries whose future has ended.

    Each future is asked once: one that ends meanwhile stays for the next call.
    """
    is_done = [future_of(entry).done() for entry in entries]
    done = list(compress(entries, is_done))
    entries[:] = compress(entries, [not flag for flag in is_done])
    return done


def _sequences_of(frontend_id: bytes, message: Submit, config: EngineConfig) -> list[Sequence]:
    """Create a request's sequences; the first one computes the prompt for all."""
    sequences: list[Sequence] = []
    for seq_index in range(message.num_sequences):
        sequence = config.make_sequence(
            message.request_id,
            message.prompt_ids,
            message.params,
            frontend_id=frontend_id,
            arrived_at=time.monotonic(),
            prefill_parent=sequences[0] if sequences else None,
            seq_index=seq_index,
            images=message.images,
            image_spans=message.image_spans,
            session=message.session,
            session_s=message.session_s,
        )
        sequences.append(sequence)
    return sequences


def _client_error(error: BaseException) -> ServingError:
    """Convert the error of a request to one that its client may see; log any other."""
    if isinstance(error, ServingError):
        return error
    log.error("engine: preparing a request failed: %s", one_line(error), exc_info=error)
    return GenerationFailed("the request cannot be prepared; the cause is in the log")
