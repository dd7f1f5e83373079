"""The engine behind its socket: requests in, one message per step and frontend out."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import msgspec

from container.engine.engine import Engine
from container.engine.requests import pop_done
from container.errors import InternalError, NotFound, ServingError, one_line
from container.ipc.backend_server import Progress, RequestKey
from container.ipc.heartbeat import Heartbeat
from container.ipc.step_server import StepServer
from container.messages.common import Abort, EngineState, ErrorData, RequestFailed
from container.messages.engine import (
    AddAdapter,
    Done,
    EngineInfo,
    RemoveAdapter,
    Status,
    StepEvents,
    Submit,
    TokenEvent,
    to_engine_decoder,
)

PREPARE_POLL_S = 0.001

log = logging.getLogger(__name__)

Load = Callable[[Progress], tuple[Engine, EngineInfo]]


@dataclass(frozen=True, slots=True, eq=False)
class _AdapterChange:
    """A frontend's message about adapters, and the future that it waits for."""

    frontend_id: bytes
    request_id: int
    is_done: Future[None]


class EngineBackend:
    """Implements StepBackend for an engine."""

    def __init__(self, engine: Engine, info: EngineInfo) -> None:
        self.engine = engine
        self.info = info
        # Whether the last step has ended a change of adapters: its status is sent first, so that
        # every frontend knows the adapters before one of them answers for the change.
        self.has_new_status = False
        self._changes: list[_AdapterChange] = []

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        adapters = self.engine.adapters
        is_loading = adapters is not None and adapters.has_work
        is_unanswered = bool(self._changes) or self.engine.has_failures
        return self.engine.has_work or is_unanswered or is_loading

    def take(
        self, frontend_id: bytes, message: Submit | Abort | AddAdapter | RemoveAdapter
    ) -> None:
        """Admit or abort a request, or change adapters. Raises ServingError."""
        match message:
            case AddAdapter() | RemoveAdapter():
                is_done = self._change_adapters(message)
                self._changes.append(_AdapterChange(frontend_id, message.request_id, is_done))
            case Submit():
                self.engine.submit(frontend_id, message)
            case Abort(request_id, seq_index):
                self.engine.abort(frontend_id, request_id, seq_index)

    def step(self) -> Iterable[tuple[bytes, msgspec.Struct]]:
        """Run one step; return its events, all of a frontend in one message."""
        by_frontend: dict[bytes, list[TokenEvent]] = defaultdict(list)
        for frontend_id, event in self.engine.step():
            by_frontend[frontend_id].append(event)
        messages = list(self._take_changes())
        self.has_new_status = bool(messages)
        messages += [
            (frontend_id, StepEvents(events)) for frontend_id, events in by_frontend.items()
        ]
        for frontend_id, request_id, error in self.engine.take_failures():
            messages.append((frontend_id, _failed(request_id, error)))
        if not messages and not self.engine.has_scheduled:
            time.sleep(PREPARE_POLL_S)  # leave the processor to the threads that prepare
        return messages

    def _change_adapters(self, message: AddAdapter | RemoveAdapter) -> "Future[None]":
        adapters = self.engine.adapters
        if adapters is None:
            raise NotFound("this model takes no adapters")
        if isinstance(message, AddAdapter):
            return adapters.add(
                message.name, message.source, preload=message.preload, pin=message.pin
            )
        adapters.remove(message.name)
        is_done: Future[None] = Future()
        is_done.set_result(None)
        return is_done

    def _take_changes(self) -> Iterator[tuple[bytes, msgspec.Struct]]:
        """Remove the changes of adapters that have ended, and yield their answers."""
        for change in pop_done(self._changes, lambda change: change.is_done):
            error = change.is_done.exception()
            if error is None:
                yield change.frontend_id, Done(change.request_id)
            else:
                yield change.frontend_id, _failed(change.request_id, error)

    def recover(self) -> None:
        """Check the engine after a failed step and go on without the request to blame."""
        self.engine.recover()

    def abort_all(self, frontend_id: bytes | None = None) -> list[RequestKey]:
        """Abort all requests, or all of one frontend; return their keys."""
        changes = [change for change in self._changes if frontend_id in (None, change.frontend_id)]
        self._changes = [change for change in self._changes if change not in changes]
        keys = [(change.frontend_id, change.request_id) for change in changes]
        return keys + self.engine.abort_all(frontend_id)


def engine_server(
    address: str,
    load: Load,
    *,
    drain_s: float,
    parent_pid: int,
    heartbeat: Heartbeat | None = None,
) -> StepServer[EngineBackend]:
    """Return the server of an engine process."""
    return StepServer(
        address,
        to_engine_decoder,
        lambda progress: EngineBackend(*load(progress)),
        _status,
        drain_s=drain_s,
        parent_pid=parent_pid,
        heartbeat=heartbeat,
    )


def _failed(request_id: int, error: BaseException) -> RequestFailed:
    if not isinstance(error, ServingError):
        log.error("engine: changing the adapters failed: %s", one_line(error), exc_info=error)
        error = InternalError("the adapters could not be changed; the cause is in the log")
    return RequestFailed(request_id, ErrorData.from_error(error))


def _status(state: EngineState, detail: str, backend: EngineBackend | None) -> Status:
    if backend is None:
        return Status(state, detail)
    adapters = backend.engine.adapters
    if adapters is None:
        return Status(state, detail, backend.info, backend.engine.load)
    known, removed = adapters.infos(), adapters.removed()
    return Status(state, detail, backend.info, backend.engine.load, known, removed)
