"""The embedder behind its socket: requests with texts in, one message with all rows out."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import msgspec

from container.embedding.text_queue import Job, Taken, Text, TextQueue
from container.errors import GenerationFailed, InvalidParameter, Overloaded
from container.ipc.backend_server import Progress, RequestKey
from container.ipc.heartbeat import Heartbeat
from container.ipc.step_server import StepServer
from container.messages.common import Abort, EngineState, ErrorData, RequestFailed
from container.messages.embedder import (
    Embed,
    Embedded,
    EmbedderInfo,
    EmbedderLoad,
    EmbedderStatus,
    to_embedder_decoder,
)

log = logging.getLogger(__name__)

T = TypeVar("T", bound=Text)
FLOAT_BYTES = 4

SELF_TEST_IDS = [0]
FAILED = ErrorData.from_error(
    GenerationFailed("the model failed on this request; the cause is in the server's log")
)


@dataclass(frozen=True, slots=True)
class TextRows:
    """The float32 numbers of one text, row by row: one row, or one for each token or term."""

    raw: bytes
    count: int


class TextModel(Protocol[T]):
    """The model interface of the embedder."""

    def encode(self, request: Embed) -> list[T]:
        """Tokenize a request's inputs. Raises RequestError."""
        ...

    def run(self, texts: Sequence[T]) -> list[TextRows]:
        """Return the rows of float32 numbers of each text, in their order."""
        ...


@dataclass(frozen=True, slots=True)
class EmbedderLimits:
    """The most tokens in a forward pass, and the most requests at a time."""

    max_batch_tokens: int
    max_requests: int


class EmbedderBackend(Generic[T]):
    """Implements StepBackend: owns the queue of texts and calls the model."""

    has_new_status = False  # its status never changes with a step's messages

    def __init__(self, model: TextModel[T], info: EmbedderInfo, limits: EmbedderLimits) -> None:
        self.info = info
        self._model = model
        self._max_requests = limits.max_requests
        self._queue: TextQueue[T, TextRows] = TextQueue(limits.max_batch_tokens)
        self._batch: list[Taken[T, TextRows]] = []
        # Parts of failed batches, which run apart until a text fails alone.
        self._suspects: list[list[Taken[T, TextRows]]] = []
        self._tried_alone: Taken[T, TextRows] | None = None
        self._failures: list[RequestKey] = []
        self._num_batches = 0
        self._num_texts = 0
        self._num_tokens = 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return len(self._queue) > 0 or bool(self._failures)

    @property
    def load(self) -> EmbedderLoad:
        """Return the current load and the counters since the start."""
        return EmbedderLoad(
            requests=len(self._queue),
            waiting_texts=self._queue.num_waiting,
            batches=self._num_batches,
            texts=self._num_texts,
            tokens=self._num_tokens,
        )

    def take(self, frontend_id: bytes, message: Embed | Abort) -> None:
        """Admit or forget a request. Raises Overloaded, InvalidParameter or PromptTooLong."""
        key = (frontend_id, message.request_id)
        if isinstance(message, Abort):
            self._queue.remove(key)
            return
        if len(self._queue) >= self._max_requests:
            raise Overloaded(
                f"the embedder already has {self._max_requests} requests (MAX_CONCURRENT_REQUESTS)",
                retry_after_s=1,
            )
        if not message.inputs:
            raise InvalidParameter(f"`{message.field}` must not be empty", field=message.field)
        self._queue.add(key, self._model.encode(message))

    def step(self) -> Iterable[tuple[bytes, msgspec.Struct]]:
        """Run one batch; return the answers of the requests that it completes or that failed."""
        if self._failures:  # alone, since the next batch may fail too
            failures, self._failures = self._failures, []
            return [(key[0], RequestFailed(key[1], FAILED)) for key in failures]
        self._batch = batch = self._next_batch()
        rows = self._model.run([taken.text for taken in batch])
        self._num_batches += 1
        self._num_texts += len(batch)
        self._num_tokens += sum(taken.text.num_tokens for taken in batch)
        return [(job.key[0], self._answer(job)) for job in self._queue.finish(batch, rows)]

    def _next_batch(self) -> list[Taken[T, TextRows]]:
        while self._suspects:
            keys = self._queue.keys
            suspects = [taken for taken in self._suspects.pop() if taken.job.key in keys]
            if suspects:
                return suspects
        return self._queue.next_batch()

    def recover(self) -> None:
        """After a failed batch: test the model, then run the batch's halves.

        A text that fails alone, twice, fails its request. Raises the exception of the test.
        """
        self._model.run(self._model.encode(Embed(0, [SELF_TEST_IDS])))
        failed, self._batch = self._batch, []
        if len(failed) == 1 and failed[0] is self._tried_alone:
            log.error("embedder: request %d makes batches fail, it ends", failed[0].job.key[1])
            self._queue.remove(failed[0].job.key)
            self._failures.append(failed[0].job.key)
            return
        self._tried_alone = failed[0] if len(failed) == 1 else None
        middle = len(failed) // 2
        self._suspects += [part for part in (failed[middle:], failed[:middle]) if part]

    def abort_all(self, frontend_id: bytes | None = None) -> list[RequestKey]:
        """Abort all requests, or all of one frontend; return their keys."""
        keys = [key for key in self._queue.keys if frontend_id is None or key[0] == frontend_id]
        for key in keys:
            self._queue.remove(key)
        return keys

    def _answer(self, job: Job[T, TextRows]) -> Embedded:
        results = [rows for rows in job.results if rows is not None]
        raw = b"".join(rows.raw for rows in results)
        lengths = [rows.count for rows in results]
        width = len(raw) // (FLOAT_BYTES * max(1, sum(lengths)))
        if all(length == 1 for length in lengths):
            lengths = []
        return Embedded(job.key[1], raw, width, job.num_tokens, lengths)


def embedder_server(
    address: str,
    load: Callable[[Progress], EmbedderBackend[T]],
    *,
    drain_s: float,
    parent_pid: int,
    heartbeat: Heartbeat | None = None,
) -> StepServer[EmbedderBackend[T]]:
    """Return the server of an embedder process."""
    return StepServer(
        address,
        to_embedder_decoder,
        load,
        _status,
        drain_s=drain_s,
        parent_pid=parent_pid,
        heartbeat=heartbeat,
    )


def _status(state: EngineState, detail: str, backend: EmbedderBackend[T] | None) -> EmbedderStatus:
    if backend is None:
        return EmbedderStatus(state, detail)
    return EmbedderStatus(state, detail, backend.info, backend.load)
