"""Admission: refuses a request that the engine has no place for, before work is done for it.

A request holds a place until it is submitted; from then on the engine's client counts it. Its
preparation may not outlast its deadline either.
"""

import math
import time
from types import TracebackType

import gevent

from container.errors import DeadlineExceeded, Overloaded
from container.frontend.clients.engine_client import EngineConnection


class Preparation:
    """A request between its admission and its submission, as a context manager.

    `end` may be called before the block ends, by whoever submits the request.
    """

    def __init__(
        self, admission: "Admission", num_places: int, timeout: gevent.Timeout | None
    ) -> None:
        self._admission = admission
        self._num_places = num_places
        self._timeout = timeout

    def __enter__(self) -> "Preparation":
        self._admission.num_preparing += self._num_places
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
        """Give the place and the time limit up."""
        self._admission.num_preparing -= self._num_places
        self._num_places = 0
        if self._timeout is not None:
            self._timeout.close()


class Admission:
    """Counts the requests of this process that are being prepared."""

    def __init__(self, engine: EngineConnection) -> None:
        self._engine = engine
        self.num_preparing = 0

    def prepare(self, deadline_at: float, *, is_batch: bool = False) -> Preparation:
        """Admit a request. Raises Overloaded, and DeadlineExceeded in the midst of its preparation.

        Records of a batch body (`is_batch`) have places of their own.
        """
        if not is_batch and self._engine.num_free <= self.num_preparing:
            raise Overloaded(
                "the server already has as many requests as it takes (MAX_CONCURRENT_REQUESTS)",
                retry_after_s=1,
            )
        remaining_s = deadline_at - time.monotonic()
        if remaining_s <= 0:
            raise deadline_exceeded()
        error = deadline_exceeded()
        timeout = gevent.Timeout(remaining_s, error) if remaining_s < math.inf else None
        return Preparation(self, 0 if is_batch else 1, timeout)


def deadline_exceeded() -> DeadlineExceeded:
    """Create the error of a request whose deadline comes before there is any answer."""
    return DeadlineExceeded(
        "the deadline came before there was any answer; send the request again, or with a later "
        "deadline (REQUEST_DEADLINE, and the request's own; the earliest counts)"
    )
