"""OpenAI's `/v1/responses`: create, whole or as a stream of typed events; stored responses."""

import secrets
import time
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, request

from container.errors import InvalidParameter, NotFound, ServingError, UnsupportedParameter
from container.frontend.apis.grammar_fields import read_grammar
from container.frontend.apis.openai.chat_rendering import served_name
from container.frontend.apis.openai.peer_fields import refuse_peer_fields
from container.frontend.apis.openai.responses.model_response import (
    ModelResponse,
    status_of,
    take,
)
from container.frontend.apis.openai.responses.output_items import Event, Item, OutputItems
from container.frontend.apis.openai.responses.schema import (
    ConversationRequest,
    InputTokensRequest,
    ResponseRequest,
    answer_format,
    chat_messages,
    check,
    check_count,
    template_options,
)
from container.frontend.apis.openai.responses.store import ResponseStore
from container.frontend.apis.openai.sampling_schema import require
from container.frontend.apis.openai.structured_fields import StructuredFields, read_structured
from container.frontend.apis.openai.tools_schema import read_tools
from container.frontend.generation import adapter_selection
from container.frontend.generation.chat import Conversations
from container.frontend.generation.chat_prompts import ChatPrompt
from container.frontend.generation.completion import TextEvent
from container.frontend.generation.limits import RequestLimits
from container.frontend.generation.offloading import in_pieces
from container.frontend.generation.request_context import RequestContext
from container.frontend.generation.service import FieldNames, Service, TextRules
from container.frontend.observability.metrics import Metrics
from container.frontend.web.error_responses import openai_body
from container.frontend.web.http_request import request_context
from container.frontend.web.request_body import parse, read_object
from container.frontend.web.responses import (
    answer_headers,
    collect,
    json_response,
    sse_typed,
    stream,
)
from container.grammar.forms import Answer

NAMES = FieldNames(prompt="input", max_new_tokens="max_output_tokens")


class ResponsesDialect:
    """Starts responses and renders them."""

    def __init__(
        self,
        service: Service,
        metrics: Metrics,
        limits: RequestLimits,
        conversations: Conversations,
        store: ResponseStore,
    ) -> None:
        self._service = service
        self._store = store
        self._metrics = metrics
        self._limits = limits
        self._conversations = conversations

    def create(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Answer a responses body."""
        received_at = time.monotonic()
        refuse_peer_fields(body, ResponseRequest)
        response_request = parse(ResponseRequest, body)
        context = context.with_deadline(
            response_request.request_deadline, streams=bool(response_request.stream)
        )
        context = adapter_selection.select_by_model(context, response_request.model, self._service)
        with self._service.preparing(context) as context:
            response = self._start(response_request, context, received_at)
        if response.response_request.stream:
            return self._stream(response)
        collect(response.running, self._metrics, context.connection)
        [completion] = response.running.completions
        for event in in_pieces(completion.all_events):
            for _ in take(response, event):
                pass  # only the items are wanted
        status = status_of(completion.finish_reason)
        self._save(response, status)
        return json_response(response.body(status), headers=answer_headers(response.running))

    def count_tokens(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Count the tokens of a conversation, images left out."""
        count_request = parse(InputTokensRequest, body)
        context = adapter_selection.select_by_model(context, count_request.model, self._service)
        adapter_selection.check_known(context, self._service)
        check_count(count_request)
        chat_prompt = _chat_prompt(count_request, self._earlier(count_request))
        text = self._conversations.render(chat_prompt)
        count = self._service.count(text)
        return json_response({"object": "response.input_tokens", "input_tokens": count})

    def find(self, response_id: str) -> Response:
        """Answer a stored response."""
        return json_response(self._store.find(response_id, "response_id").body)

    def delete(self, response_id: str) -> Response:
        """Drop a stored response."""
        self._store.delete(response_id, "response_id")
        return json_response({"id": response_id, "object": "response", "deleted": True})

    def _earlier(self, request: ConversationRequest) -> list[Item]:
        """The items of the conversation that a request continues."""
        if request.previous_response_id is None:
            return []
        field = "previous_response_id"
        try:
            return self._store.find(request.previous_response_id, field).items
        except NotFound as error:  # a wrong field here, not a wrong path
            raise InvalidParameter(f"`{field}`: {error.message}", field=field) from None

    def _save(self, response: ModelResponse, status: str) -> None:
        if response.is_stored:
            self._service.offloads.files(self._store.save, response.id, response.stored(status))

    def _start(
        self, response_request: ResponseRequest, context: RequestContext, received_at: float
    ) -> ModelResponse:
        service = self._service
        vocabulary = service.info.vocabulary
        check(response_request, self._limits, vocabulary)
        if response_request.store and not self._store.is_on:
            raise UnsupportedParameter(
                "`store`: this server stores no responses (MAX_STORED_RESPONSES is 0)",
                field="store",
            )
        answer = self._answer(response_request)
        earlier = self._earlier(response_request)
        chat_prompt = _chat_prompt(response_request, earlier, answer)
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
            served_name(response_request.model, reply.running.info.model_id),
            f"resp_{secrets.token_hex(16)}",
            int(time.time()),
            OutputItems(reply.builders[0]),
            earlier,
            is_stored=self._store.is_on and response_request.store is not False,
        )

    def _answer(self, response_request: ResponseRequest) -> Answer | None:
        form, structured = answer_format(response_request), response_request.structured_outputs
        if structured is None:
            return read_grammar(form, "text.format", self._limits)
        require(
            form is None or form.get("type") == "text",
            "structured_outputs",
            "and `text.format` exclude each other",
        )
        fields = StructuredFields(structured_outputs=structured)
        return read_structured(fields, self._limits)

    def _stream(self, response: ModelResponse) -> Response:
        def render(event: TextEvent) -> Iterator[Event]:
            if response.running.completion_tokens == 1:
                for name in ("created", "in_progress"):
                    error_body = response.body("in_progress")
                    yield response.number({"type": f"response.{name}", "response": error_body})
            yield from map(response.number, take(response, event))
            if event.finish_reason is not None:
                status = status_of(event.finish_reason)
                self._save(response, status)
                error_body = response.body(status)
                yield response.number({"type": f"response.{status}", "response": error_body})

        def render_error(error: ServingError) -> Event:
            error_body = openai_body(error)["error"]
            event = {key: error_body[key] for key in ("message", "param", "code")}
            return response.number({"type": "error"} | event)

        return stream(response.running, render, render_error, self._metrics, write=sse_typed)


def blueprint(dialect: ResponsesDialect) -> Blueprint:
    """Make the routes."""
    routes = Blueprint("responses", __name__)

    @routes.post("/v1/responses")
    def responses() -> Response:
        return dialect.create(read_object(request), request_context())

    @routes.post("/v1/responses/input_tokens")
    def input_tokens() -> Response:
        return dialect.count_tokens(read_object(request), request_context())

    @routes.get("/v1/responses/<response_id>")
    def response(response_id: str) -> Response:
        return dialect.find(response_id)

    @routes.delete("/v1/responses/<response_id>")
    def delete(response_id: str) -> Response:
        return dialect.delete(response_id)

    return routes


def _chat_prompt(
    request: ConversationRequest, earlier: list[Item], answer: Answer | None = None
) -> ChatPrompt:
    messages, images = chat_messages(request, earlier)
    return ChatPrompt(
        messages,
        read_tools(request.tools, request.tool_choice, parallel=request.parallel_tool_calls),
        answer=answer,
        template_options=template_options(request),
        continues=False,
        images=images,
    )
