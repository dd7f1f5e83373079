"""OpenAI's `/v1/responses`: create, whole or as a stream of typed events. Nothing is stored."""

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from flask import Blueprint, Response, request

from container.errors import ServingError
from container.frontend.apis.grammar_fields import read_grammar
from container.frontend.apis.openai.chat_rendering import served_name
from container.frontend.apis.openai.peer_fields import refuse_peer_fields
from container.frontend.apis.openai.responses.output_items import Event, OutputItems
from container.frontend.apis.openai.responses.schema import (
    ResponseRequest,
    answer_format,
    chat_messages,
    check,
    template_options,
)
from container.frontend.apis.openai.sampling_schema import require
from container.frontend.apis.openai.structured_fields import StructuredFields, read_structured
from container.frontend.apis.openai.tools_schema import read_tools
from container.frontend.generation import adapter_selection
from container.frontend.generation.chat import ChatPrompt, Conversations, Reply
from container.frontend.generation.limits import RequestLimits
from container.frontend.generation.request_context import RequestContext
from container.frontend.generation.running_request import RunningRequest, TextEvent
from container.frontend.generation.service import FieldNames, Service, TextRules
from container.frontend.observability.metrics import Metrics
from container.frontend.web.error_responses import openai_body
from container.frontend.web.http_request import request_context
from container.frontend.web.request_body import parse, read_object
from container.frontend.web.responses import collect, json_response, sse_typed, stream
from container.messages.engine import FinishReason

NAMES = FieldNames(prompt="input", max_new_tokens="max_output_tokens")


@dataclass(slots=True)
class ModelResponse:
    """A started response: the running reply, and its output so far."""

    reply: Reply
    response_request: ResponseRequest
    model: str
    id: str
    created_at: int
    output: OutputItems
    numbers: Iterator[int] = field(default_factory=count)

    @property
    def running(self) -> RunningRequest:
        """The request in the engine."""
        return self.reply.running

    def body(self, status: str) -> dict[str, Any]:
        """The response object, as it is now."""
        response_request, is_cut = self.response_request, status == "incomplete"
        has_ended = status in ("completed", "incomplete")
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "instructions": response_request.instructions,
            "max_output_tokens": response_request.max_output_tokens,
            "model": self.model,
            "output": self.output.items if has_ended else [],
            "parallel_tool_calls": response_request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": response_request.reasoning.model_dump()
            if response_request.reasoning
            else {"effort": None},
            "store": False,
            "temperature": 1.0
            if response_request.temperature is None
            else response_request.temperature,
            "text": {
                "format": (response_request.text and response_request.text.format)
                or {"type": "text"}
            },
            "tool_choice": response_request.tool_choice or "auto",
            "tools": response_request.tools or [],
            "top_p": 1.0 if response_request.top_p is None else response_request.top_p,
            "truncation": "disabled",
            "usage": self._usage() if has_ended else None,
            "user": response_request.user,
            "metadata": response_request.metadata or {},
        }

    def number(self, event: Event) -> Event:
        """Give an event its place in the stream."""
        return event | {"sequence_number": next(self.numbers)}

    def _usage(self) -> dict[str, Any]:
        prompt, new = self.running.prompt_tokens, self.running.completion_tokens
        cached = self.running.prompt.cached_tokens
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": new,
            "output_tokens_details": {"reasoning_tokens": self.reply.builders[0].reasoning_tokens},
            "total_tokens": prompt + new,
        }


class ResponsesDialect:
    """Starts responses and renders them."""

    def __init__(
        self,
        service: Service,
        metrics: Metrics,
        limits: RequestLimits,
        conversations: Conversations,
    ) -> None:
        self._service = service
        self._metrics = metrics
        self._limits = limits
        self._conversations = conversations

    def create(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Answer a responses body."""
        received_at = time.monotonic()
        refuse_peer_fields(body, ResponseRequest)
        response_request = parse(ResponseRequest, body)
        context = adapter_selection.select_by_model(context, response_request.model, self._service)
        response = self._start(response_request, context, received_at)
        if response.response_request.stream:
            return self._stream(response)
        collect(response.running, self._metrics, context.connection)
        [completion] = response.running.completions
        for event in completion.events:
            for _ in _take(response, event):
                pass  # only the items are wanted
        return json_response(response.body(_status(completion.finish_reason)))

    def _start(
        self, response_request: ResponseRequest, context: RequestContext, received_at: float
    ) -> ModelResponse:
        service = self._service
        vocabulary = service.info.vocabulary
        check(response_request, self._limits, vocabulary)
        answer = self._grammar(response_request)
        messages, images = chat_messages(response_request)
        chat_prompt = ChatPrompt(
            messages,
            read_tools(
                response_request.tools,
                response_request.tool_choice,
                parallel=response_request.parallel_tool_calls,
            ),
            answer=answer,
            template_options=template_options(response_request),
            continues=False,
            images=images,
        )
        limit = response_request.max_output_tokens
        prepared = self._conversations.prepare(chat_prompt, NAMES, limit)
        sampling = response_request.sampling
        params = sampling.params(
            prepared.max_new_tokens, vocabulary, top_logprobs=None, grammar=prepared.grammar
        )
        text = TextRules(received_at, sampling.stops, keep_stop=sampling.keeps_stop)
        reply = self._conversations.start(prepared, params, text, context)
        return ModelResponse(
            reply,
            response_request,
            served_name(response_request.model, service.info.model_id),
            response_request.request_id or f"resp_{secrets.token_hex(16)}",
            int(time.time()),
            OutputItems(reply.builders[0]),
        )

    def _grammar(self, response_request: ResponseRequest) -> str:
        form, structured = answer_format(response_request), response_request.structured_outputs
        if structured is None:
            return read_grammar(form, "text.format", self._limits, self._service.offload)
        require(
            form is None or form.get("type") == "text",
            "structured_outputs",
            "and `text.format` exclude each other",
        )
        fields = StructuredFields(structured_outputs=structured)
        return read_structured(fields, self._limits, self._service.offload)

    def _stream(self, response: ModelResponse) -> Response:
        def render(event: TextEvent) -> Iterator[Event]:
            if response.running.completion_tokens == 1:
                for name in ("created", "in_progress"):
                    error_body = response.body("in_progress")
                    yield response.number({"type": f"response.{name}", "response": error_body})
            yield from map(response.number, _take(response, event))
            if event.finish_reason is not None:
                status = _status(event.finish_reason)
                error_body = response.body(status)
                yield response.number({"type": f"response.{status}", "response": error_body})

        def render_error(error: ServingError) -> Event:
            error_body = openai_body(error)["error"]
            event = {key: error_body[key] for key in ("message", "param", "code")}
            return response.number({"type": "error"} | event)

        return stream(response.running, render, render_error, self._metrics, write=sse_typed)


def blueprint(dialect: ResponsesDialect) -> Blueprint:
    """Make the route."""
    routes = Blueprint("responses", __name__)

    @routes.post("/v1/responses")
    def responses() -> Response:
        return dialect.create(read_object(request), request_context())

    return routes


def _take(response: ModelResponse, event: TextEvent) -> Iterator[Event]:
    """Turn a token into events of the output; the last one closes it."""
    for delta in response.reply.take(event):
        yield from response.output.take(delta)
    if event.finish_reason is not None:
        yield from response.output.close(_status(event.finish_reason))


def _status(reason: FinishReason | None) -> str:
    return "completed" if reason in (FinishReason.END_TOKEN, FinishReason.STOP) else "incomplete"
