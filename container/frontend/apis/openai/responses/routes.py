"""OpenAI's `/v1/responses`: create, whole or as a stream of typed events; stored responses."""

import secrets
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from flask import Blueprint, Response, request

from container.errors import InvalidParameter, NotFound, ServingError, UnsupportedParameter
from container.frontend.apis.generation_dialect import ChatDialect, GenerationOptions
from container.frontend.apis.grammar_fields import read_grammar
from container.frontend.apis.openai.chat_rendering import served_name
from container.frontend.apis.openai.peer_fields import parse_request
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
from container.frontend.chat.chat_prompts import ChatPrompt
from container.frontend.chat.conversations import Conversations
from container.frontend.generation.completion import TextEvent
from container.frontend.generation.limits import RequestLimits
from container.frontend.generation.offloading import in_pieces
from container.frontend.generation.prompts import FieldNames
from container.frontend.generation.request_context import RequestContext
from container.frontend.generation.service import Service, TextRules
from container.frontend.observability.metrics import Metrics
from container.frontend.web.error_responses import openai_body
from container.frontend.web.http_request import request_context
from container.frontend.web.request_body import parse, read_object
from container.frontend.web.responses import json_response, sse_typed
from container.grammar.forms import Answer

NAMES = FieldNames(prompt="input", max_new_tokens="max_output_tokens")


class ResponsesDialect(ChatDialect[ModelResponse]):
    """Starts responses and renders them."""

    write_event = staticmethod(sse_typed)

    def __init__(
        self,
        service: Service,
        metrics: Metrics,
        limits: RequestLimits,
        conversations: Conversations,
        store: ResponseStore,
    ) -> None:
        super().__init__(service, metrics, limits, conversations)
        self._store = store

    def create(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Answer a responses body."""
        received_at = time.monotonic()
        response_request = parse_request(ResponseRequest, body)
        options = GenerationOptions(
            bool(response_request.stream), response_request.request_deadline, response_request.model
        )
        start = partial(self._start, response_request, received_at)
        return self._generate(options, start, context)

    def count_tokens(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Count the tokens of a conversation, images left out."""
        count_request = parse(InputTokensRequest, body)

        def read_chat() -> ChatPrompt:
            check_count(count_request)
            return _chat_prompt(count_request, self._earlier(count_request))

        num_tokens = self._num_tokens(count_request.model, read_chat, context)
        return json_response({"object": "response.input_tokens", "input_tokens": num_tokens})

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
        self, response_request: ResponseRequest, received_at: float, context: RequestContext
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
            prepared.max_new_tokens,
            vocabulary,
            top_logprobs=response_request.num_logprobs,
            grammar=prepared.grammar,
        )
        text = TextRules(received_at, sampling.stops, keep_stop=sampling.includes_stop)
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

    def _body(self, response: ModelResponse) -> object:
        [completion] = response.running.completions
        for event in in_pieces(completion.all_events):
            for _ in take(response, event):
                pass  # a whole answer needs the items only
        status = status_of(completion.finish_reason)
        self._save(response, status)
        return response.body(status)

    def _events(self, response: ModelResponse, event: TextEvent) -> Iterator[Event]:
        if response.running.completion_tokens == 1:
            for name in ("created", "in_progress"):
                body = response.body("in_progress")
                yield response.number({"type": f"response.{name}", "response": body})
        yield from map(response.number, take(response, event))
        if event.finish_reason is not None:
            status = status_of(event.finish_reason)
            self._save(response, status)
            body = response.body(status)
            yield response.number({"type": f"response.{status}", "response": body})

    def _error_event(self, response: ModelResponse, error: ServingError) -> Event:
        body = openai_body(error)["error"]
        fields = {key: body[key] for key in ("message", "param", "code")}
        return response.number({"type": "error"} | fields)


def blueprint(dialect: ResponsesDialect) -> Blueprint:
    """Return the routes."""
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
