"""The engine behind its socket: requests in, one message per step and frontend out."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable

import msgspec

from container.engine.engine import Engine
from container.errors import NotFound
from container.ipc.backend_server import Progress, RequestKey
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

COMPILE_POLL_S = 0.001

Load = Callable[[Progress], tuple[Engine, EngineInfo]]


class EngineBackend:
    """Implements StepBackend for an engine."""

    def __init__(self, engine: Engine, info: EngineInfo) -> None:
        self.engine = engine
        self.info = info
        self._done: list[tuple[bytes, msgspec.Struct]] = []

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.engine.has_work or bool(self._done)

    def take(
        self, frontend_id: bytes, message: Submit | Abort | AddAdapter | RemoveAdapter
    ) -> None:
        """Admit or abort a request, or change adapters. Raises ServingError."""
        match message:
            case AddAdapter() | RemoveAdapter():
                self._change_adapters(message)
                self._done.append((frontend_id, Done(message.request_id)))
            case Submit():
                self.engine.submit(frontend_id, message)
            case Abort(request_id, seq_index):
                self.engine.abort(frontend_id, request_id, seq_index)

    def step(self) -> Iterable[tuple[bytes, msgspec.Struct]]:
        """Run one step; return its events, all of a frontend in one message."""
        by_frontend: dict[bytes, list[TokenEvent]] = defaultdict(list)
        for frontend_id, event in self.engine.step():
            by_frontend[frontend_id].append(event)
        if self.engine.only_compiles:
            time.sleep(COMPILE_POLL_S)  # leave the processor to the thread that compiles
        messages, self._done = self._done, []
        messages += [
            (frontend_id, StepEvents(events)) for frontend_id, events in by_frontend.items()
        ]
        for frontend_id, request_id, error in self.engine.take_failures():
            messages.append((frontend_id, RequestFailed(request_id, ErrorData.from_error(error))))
        return messages

    def _change_adapters(self, message: AddAdapter | RemoveAdapter) -> None:
        adapters = self.engine.adapters
        if adapters is None:
            raise NotFound("this model takes no adapters")
        if isinstance(message, AddAdapter):
            adapters.add(message.name, message.source, preload=message.preload, pin=message.pin)
        else:
            adapters.remove(message.name)

    def abort_all(self, frontend_id: bytes | None = None) -> list[RequestKey]:
        """Abort all requests, or all of one frontend; return their keys."""
        return self.engine.abort_all(frontend_id)


def engine_server(
    address: str, load: Load, *, drain_s: float, parent_pid: int
) -> StepServer[EngineBackend]:
    """Return the server of an engine process."""
    return StepServer(
        address,
        to_engine_decoder,
        lambda progress: EngineBackend(*load(progress)),
        _status,
        drain_s=drain_s,
        parent_pid=parent_pid,
        run_self_test=lambda backend: backend.engine.run_self_test(),
    )


def _status(state: EngineState, detail: str, backend: EngineBackend | None) -> Status:
    if backend is None:
        return Status(state, detail)
    adapters = backend.engine.adapters
    known = adapters.infos() if adapters is not None else None
    return Status(state, detail, backend.info, backend.engine.load, known)
