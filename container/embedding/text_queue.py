"""The queue of texts: selects the batch of the next forward pass. No torch, no sockets.

Tokens bound a batch. Requests take turns, one text each (round robin), so that a request with two
thousand texts does not delay one with a single text. The model sorts the texts of a batch by
length, so that short ones need no padding up to long ones.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from container.ipc.backend_server import RequestKey


class Text(Protocol):
    """A tokenized text, as far as the queue reads it."""

    @property
    def num_tokens(self) -> int:
        """The length in tokens."""
        ...


T = TypeVar("T", bound=Text)
R = TypeVar("R")


@dataclass(slots=True)
class Job(Generic[T, R]):
    """A request: its texts, and the results so far, in the order of the texts."""

    key: RequestKey
    texts: list[T]
    results: list[R | None] = field(default_factory=list)
    num_taken: int = 0
    num_missing: int = 0

    def __post_init__(self) -> None:
        """Mark every result as missing."""
        self.results = [None] * len(self.texts)
        self.num_missing = len(self.texts)

    @property
    def num_tokens(self) -> int:
        """The number of tokens of all texts."""
        return sum(text.num_tokens for text in self.texts)


@dataclass(frozen=True, slots=True)
class Taken(Generic[T, R]):
    """A text in a batch, with its request."""

    job: Job[T, R]
    index: int

    @property
    def text(self) -> T:
        """The text itself."""
        return self.job.texts[self.index]


class TextQueue(Generic[T, R]):
    """Owns the unfinished requests of an embedder."""

    def __init__(self, max_batch_tokens: int) -> None:
        self._max_batch_tokens = max_batch_tokens
        self._jobs: dict[RequestKey, Job[T, R]] = {}
        self._turns: deque[Job[T, R]] = deque()  # those with texts that no batch has taken

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def num_waiting(self) -> int:
        """The number of texts that no batch has taken yet."""
        return sum(len(job.texts) - job.num_taken for job in self._turns)

    def add(self, key: RequestKey, texts: list[T]) -> None:
        """Add a request with at least one text."""
        job: Job[T, R] = Job(key, texts)
        self._jobs[key] = job
        self._turns.append(job)

    def remove(self, key: RequestKey) -> bool:
        """Remove a request; return whether it was in the queue."""
        job = self._jobs.pop(key, None)
        if job is not None and job in self._turns:
            self._turns.remove(job)
        return job is not None

    @property
    def keys(self) -> list[RequestKey]:
        """All unfinished requests."""
        return list(self._jobs)

    def next_batch(self) -> list[Taken[T, R]]:
        """Take texts up to the token budget, but at least one if any waits."""
        batch: list[Taken[T, R]] = []
        budget = self._max_batch_tokens
        while self._turns:
            job = self._turns[0]
            needed = job.texts[job.num_taken].num_tokens
            if batch and needed > budget:
                break
            budget -= needed
            batch.append(Taken(job, job.num_taken))
            job.num_taken += 1
            self._turns.popleft()
            if job.num_taken < len(job.texts):
                self._turns.append(job)
        return batch

    def finish(self, batch: list[Taken[T, R]], results: Iterable[R]) -> list[Job[T, R]]:
        """Store the results of a batch; return the requests that are complete now."""
        complete = []
        for taken, result in zip(batch, results, strict=True):
            job = taken.job
            job.results[taken.index] = result
            job.num_missing -= 1
            if job.num_missing == 0 and self._jobs.pop(job.key, None) is not None:
                complete.append(job)
        return complete
