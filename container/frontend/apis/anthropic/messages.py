"""Anthropic's `/v1/messages`, whole or as a stream of typed events, and `count_tokens`."""

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from flask import Blueprint, Response, request

from container.errors import ServingError
from container.frontend.apis.anthropic.content_blocks import ContentBlocks, Event
from container.frontend.apis.anthropic.context_edits import (
    ContextManagement,
    EditedContext,
    Turn,
    edit_context,
)
from container.frontend.apis.anthropic.conversation import ConversationReader
from container.frontend.apis.anthropic.schema import (
    CountTokensRequest,
    MessagesRequest,
    check,
    check_count,
    read_tool_use,
)
from container.frontend.apis.generation_dialect import ChatDialect, GenerationOptions
from container.frontend.apis.grammar_fields import read_grammar
from container.frontend.apis.openai.chat_rendering import served_name
from container.frontend.apis.openai.peer_fields import parse_request
from container.frontend.chat.chat_prompts import ChatPrompt
from container.frontend.chat.conversations import Reply
from container.frontend.generation.completion import TextEvent
from container.frontend.generation.offloading import in_pieces
from container.frontend.generation.prompts import FieldNames
from container.frontend.generation.request_context import RequestContext
from container.frontend.generation.running_request import RunningRequest
from container.frontend.generation.service import TextRules
from container.frontend.web.error_responses import anthropic_body
from container.frontend.web.http_request import request_context
from container.frontend.web.request_body import read_object
from container.frontend.web.responses import deadline_mark, json_response, sse_typed
from container.grammar.forms import Answer
from container.messages.engine import FinishReason

NAMES = FieldNames(prompt="messages", max_new_tokens="max_tokens")


@dataclass(frozen=True, slots=True)
class ModelMessage:
    """A started answer: the running reply, and its content so far.

    `fills_context`: `max_tokens` was more than the context has room for. `edits` are those that
    changed the conversation, None if the request has no `context_management`.
    """

    reply: Reply
    model: str
    id: str
    content: ContentBlocks
    fills_context: bool
    edits: list[dict[str, Any]] | None = None

    @property
    def running(self) -> RunningRequest:
        """The request in the engine."""
        return self.reply.running

    def body(self) -> dict[str, Any]:
        """Return the message object with its content so far."""
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": self.content.blocks,
            **self.ending(),
            "usage": self.usage(),
            **self.management(),
        }

    def management(self) -> dict[str, Any]:
        """Return the edits of the context, if the request has any."""
        return {} if self.edits is None else {"context_management": {"applied_edits": self.edits}}

    def ending(self) -> dict[str, Any]:
        """Return why the answer ended, and the stop sequence that ended it; null while it runs."""
        [completion] = self.running.completions
        reason = completion.finish_reason
        ending = {"stop_reason": self._stop_reason(reason), "stop_sequence": completion.stop_string}
        return ending | deadline_mark(reason)

    def usage(self) -> dict[str, Any]:
        """Count the tokens; `input_tokens` leaves out those that were in the cache."""
        cached = self.running.prompt.cached_tokens
        return {
            "input_tokens": self.running.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": self.running.completion_tokens,
            "output_tokens_details": {"thinking_tokens": self.reply.builders[0].reasoning_tokens},
        }

    def _stop_reason(self, reason: FinishReason | None) -> str | None:
        if reason is None:
            return None
        if self.reply.calls_tools(0, reason):
            return "tool_use"
        if reason is FinishReason.END_TOKEN:
            return "end_turn"
        if reason is FinishReason.STOP:
            return "stop_sequence"
        if reason is FinishReason.DEADLINE:
            return "max_tokens"
        return "model_context_window_exceeded" if self.fills_context else "max_tokens"


class AnthropicDialect(ChatDialect[ModelMessage]):
    """Starts messages and renders them; `/invocations` uses it too."""

    write_event = staticmethod(sse_typed)

    def create(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Answer a messages body."""
        received_at = time.monotonic()
        messages_request = parse_request(MessagesRequest, body)
        options = GenerationOptions(
            bool(messages_request.stream), messages_request.request_deadline, messages_request.model
        )
        start = partial(self._start, messages_request, received_at)
        return self._generate(options, start, context)

    def count_tokens(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Count the tokens of a conversation, images left out."""
        count_request = parse_request(CountTokensRequest, body)
        edited = EditedContext([])

        def read_chat() -> ChatPrompt:
            nonlocal edited
            check_count(count_request)
            edited = self._edited(count_request)
            return _chat_prompt(count_request, edited.messages)

        num_tokens = self._num_tokens(count_request.model, read_chat, context)
        answer: dict[str, Any] = {"input_tokens": num_tokens}
        if count_request.context_management is not None:
            original = edited.original_tokens
            answer["context_management"] = {
                "original_input_tokens": num_tokens if original is None else original
            }
        return json_response(answer)

    def _edited(self, count_request: CountTokensRequest) -> EditedContext:
        """Apply the request's `context_management`. Raises InvalidParameter."""

        def count(messages: list[Turn]) -> int:
            chat_prompt = _chat_prompt(count_request, messages)
            return self._service.prompts.count(self._conversations.render(chat_prompt))

        management = count_request.context_management or ContextManagement()
        return edit_context([*count_request.messages], management, count)

    def _start(
        self, messages_request: MessagesRequest, received_at: float, context: RequestContext
    ) -> ModelMessage:
        service = self._service
        vocabulary = service.info.vocabulary
        check(messages_request, self._limits, vocabulary)
        form = messages_request.answer_format
        answer = read_grammar(form, "output_config.format", self._limits)
        edited = self._edited(messages_request)
        chat_prompt = _chat_prompt(messages_request, edited.messages, answer)
        prepared = self._conversations.prepare(chat_prompt, NAMES, None)
        # Clients request as many tokens as Anthropic's models generate: more than fits is no error.
        max_new_tokens = prepared.max_new_tokens
        params = messages_request.sampling.params(
            min(max_new_tokens, messages_request.max_tokens),
            vocabulary,
            top_logprobs=None,
            grammar=prepared.grammar,
        )
        rules = TextRules(received_at, messages_request.stop_sequences or [])
        reply = self._conversations.start(prepared, params, rules, context)
        thinking = messages_request.thinking
        return ModelMessage(
            reply,
            served_name(messages_request.model, reply.running.info.model_id),
            f"msg_{secrets.token_hex(12)}",
            ContentBlocks(
                reply.builders[0],
                shows_thinking=thinking is None or thinking.display != "omitted",
            ),
            fills_context=messages_request.max_tokens > max_new_tokens,
            edits=None if messages_request.context_management is None else edited.applied,
        )

    def _body(self, message: ModelMessage) -> object:
        [completion] = message.running.completions
        for event in in_pieces(completion.all_events):
            for _ in _take(message, event):
                pass  # a whole answer needs the blocks only
        return message.body()

    def _events(self, message: ModelMessage, event: TextEvent) -> Iterator[Event]:
        if message.running.completion_tokens == 1:
            yield {"type": "message_start", "message": _beginning(message)}
            yield {"type": "ping"}
        yield from _take(message, event)
        if event.finish_reason is not None:
            end = {"type": "message_delta", "delta": message.ending(), "usage": message.usage()}
            yield end | message.management()
            yield {"type": "message_stop"}

    def _error_event(self, message: ModelMessage, error: ServingError) -> dict[str, Any]:
        return anthropic_body(error)


def blueprint(dialect: AnthropicDialect) -> Blueprint:
    """Return the routes."""
    routes = Blueprint("anthropic", __name__)

    @routes.post("/v1/messages")
    def messages() -> Response:
        return dialect.create(read_object(request), request_context())

    @routes.post("/v1/messages/count_tokens")
    def count_tokens() -> Response:
        return dialect.count_tokens(read_object(request), request_context())

    return routes


def _beginning(message: ModelMessage) -> dict[str, Any]:
    """Return the message before its first block."""
    ending = {"stop_reason": None, "stop_sequence": None}
    return message.body() | ending | {"content": []}


def _chat_prompt(
    request: CountTokensRequest, messages: list[Turn], answer: Answer | None = None
) -> ChatPrompt:
    reader = ConversationReader()
    reader.read(request.system, messages)
    return ChatPrompt(
        reader.messages,
        read_tool_use(request),
        answer=answer,
        template_options=request.template_options,
        images=reader.images,
    )


def _take(message: ModelMessage, event: TextEvent) -> Iterator[Event]:
    """Turn a token into events of the content; the last one closes it."""
    for delta in message.reply.take(event):
        yield from message.content.take(delta)
    if event.finish_reason is not None:
        yield from message.content.close()
