"""Admission: refuses a request when the engine is full, before any work is done for it.

Admission counts a request until it is submitted; from then on the engine's client does. The
preparation of a request ends at its deadline, too.
"""

import math
import time
from types import TracebackType

import gevent

from container.errors import DeadlineExceeded, Overloaded
from container.frontend.clients.engine_client import EngineConnection


class Preparation:
    """A request between its admission and its submission, as a context manager.

    The code that submits the request calls `end` before the block ends.
    """

    def __init__(self, admission: "Admission", weight: int, timeout: gevent.Timeout | None) -> None:
        self._admission = admission
        self._weight = weight
        self._timeout = timeout

    def __enter__(self) -> "Preparation":
        self._admission.num_preparing += self._weight
        if self._timeout is not None:
            self._timeout.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """Stop counting the request and cancel its time limit."""
        self._admission.num_preparing -= self._weight
        self._weight = 0
        if self._timeout is not None:
            self._timeout.close()


class Admission:
    """Counts the requests of this process that are being prepared."""

    def __init__(self, engine: EngineConnection) -> None:
        self._engine = engine
        self.num_preparing = 0

    @property
    def is_full(self) -> bool:
        """Whether a request would be refused now. Raises Unavailable without an engine."""
        return self._engine.num_free <= self.num_preparing

    def prepare(self, deadline_at: float, *, is_batch: bool = False) -> Preparation:
        """Admit a request. Raises Overloaded, and DeadlineExceeded in the midst of its preparation.

        Records of a batch body (`is_batch`) do not count: BatchSlots limits them.
        """
        if not is_batch and self.is_full:
            raise overloaded()
        remaining_s = deadline_at - time.monotonic()
        if remaining_s <= 0:
            raise deadline_exceeded()
        error = deadline_exceeded()
        timeout = gevent.Timeout(remaining_s, error) if remaining_s < math.inf else None
        return Preparation(self, 0 if is_batch else 1, timeout)


def overloaded() -> Overloaded:
    """Create the error of a request that the engine has no place for."""
    return Overloaded(
        "the server already has as many requests as it takes (MAX_CONCURRENT_REQUESTS)",
        retry_after_s=1,
    )


def deadline_exceeded() -> DeadlineExceeded:
    """Create the error of a request whose deadline comes before there is any answer."""
    return DeadlineExceeded(
        "the deadline came before there was any answer; send the request again, or with a later "
        "deadline (REQUEST_DEADLINE, and the request's own; the earliest counts)"
    )
