"""The steps that every generating API shares: deadline, adapter, admission, start, answer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from flask import Response

from container.errors import ServingError
from container.frontend.chat.chat_prompts import ChatPrompt
from container.frontend.chat.conversations import Conversations
from container.frontend.generation import adapter_selection
from container.frontend.generation.limits import RequestLimits
from container.frontend.generation.request_context import RequestContext
from container.frontend.generation.running_request import Running
from container.frontend.generation.service import Service
from container.frontend.observability.metrics import Metrics
from container.frontend.web.responses import answer_headers, collect, json_response, sse, stream


class StartedAnswer(Protocol):
    """An answer whose requests run in the engine."""

    @property
    def running(self) -> Running[Any]:
        """The request, or the group of requests, in the engine."""
        ...


A = TypeVar("A", bound=StartedAnswer)


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """The options of a request that every generating API has.

    `deadline_s` is the request's own. `adapter_ids` are the values of the fields that name an
    adapter, `model` is the served model's name or an adapter's.
    """

    streams: bool
    deadline_s: float | None
    model: str | None = None
    adapter_ids: Mapping[str, str | None] = field(default_factory=dict)


class GenerationDialect(ABC, Generic[A]):
    """Answers the requests of one API with generated text, whole or as a stream.

    `stream_end` follows the last event of a stream; `write_event` encodes an event.
    """

    stream_end = b""
    write_event: Callable[[Any], bytes] = staticmethod(sse)

    def __init__(self, service: Service, metrics: Metrics, limits: RequestLimits) -> None:
        self._service = service
        self._metrics = metrics
        self._limits = limits

    def _generate(
        self,
        options: GenerationOptions,
        start: Callable[[RequestContext], A],
        context: RequestContext,
    ) -> Response:
        """Admit a request, call `start` to check and submit it, and answer it."""
        context = context.with_deadline(options.deadline_s, streams=options.streams)
        context = self._select_adapter(options, context)
        with self._service.preparing(context) as context:
            answer = start(context)
        if not options.streams:
            collect(answer.running, self._metrics, context.connection)
            return json_response(
                self._body(answer), headers=answer_headers(is_cut=answer.running.is_cut)
            )
        return stream(
            answer.running,
            partial(self._events, answer),
            partial(self._error_event, answer),
            self._metrics,
            end=self.stream_end,
            write=self.write_event,
        )

    def _select_adapter(
        self, options: GenerationOptions, context: RequestContext
    ) -> RequestContext:
        """Select the adapter that a field names. Raises InvalidParameter or NotFound."""
        context = adapter_selection.select_by_model(context, options.model, self._service)
        for name, adapter_id in options.adapter_ids.items():
            context = adapter_selection.select_by_id(context, adapter_id, name)
        return context

    @abstractmethod
    def _body(self, answer: A) -> object:
        """Render the body of an answer that has ended."""

    @abstractmethod
    def _events(self, answer: A, event: Any) -> Iterable[object]:
        """Render an event of the engine as events of the stream."""

    @abstractmethod
    def _error_event(self, answer: A, error: ServingError) -> Any:
        """Render an error after the first byte as an event of the stream."""


class ChatDialect(GenerationDialect[A]):
    """Answers the requests of one API with messages of a chat."""

    def __init__(
        self,
        service: Service,
        metrics: Metrics,
        limits: RequestLimits,
        conversations: Conversations,
    ) -> None:
        super().__init__(service, metrics, limits)
        self._conversations = conversations

    def _num_tokens(
        self, model: str | None, read_chat: Callable[[], ChatPrompt], context: RequestContext
    ) -> int:
        """Count the tokens of a chat, without its images. Raises the error of `read_chat`."""
        context = adapter_selection.select_by_model(context, model, self._service)
        adapter_selection.check_known(context, self._service)
        # A template writes the special tokens itself.
        return self._service.prompts.count(self._conversations.render(read_chat()))
