"""OpenAI's API: `/v1/chat/completions` and `/v1/models`."""

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from flask import Blueprint, Response, request

from container import __version__
from container.frontend.apis.grammar_fields import read_grammar
from container.frontend.apis.openai.chat_schema import (
    ChatRequest,
    check,
    template_messages,
    template_options,
)
from container.frontend.apis.openai.tools_schema import read_tools
from container.frontend.generation import adapter_selection
from container.frontend.generation.chat import ChatPrompt, Conversations, MessageBuilder, Reply
from container.frontend.generation.embedding_service import Embeddings
from container.frontend.generation.limits import RequestLimits
from container.frontend.generation.request_context import RequestContext
from container.frontend.generation.running_request import RunningRequest, TextEvent, TokenText
from container.frontend.generation.service import FieldNames, Service, TextRules
from container.frontend.observability.metrics import Metrics
from container.frontend.web.error_responses import openai_body
from container.frontend.web.http_request import request_context
from container.frontend.web.request_body import parse, read_object
from container.frontend.web.responses import collect, json_response, stream
from container.messages.engine import FinishReason
from container.text.message_parser import Delta, DeltaKind

NAMES = FieldNames(prompt="messages", max_new_tokens="max_tokens")
FINISH_REASONS = {
    FinishReason.END_TOKEN: "stop",
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.ABORTED: "length",
}
FINGERPRINT = f"{__version__}-native"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Chat:
    """A started chat request, with what its rendering needs."""

    reply: Reply
    chat_request: ChatRequest
    model: str
    id: str
    created: int

    @property
    def running(self) -> RunningRequest:
        """The request in the engine."""
        return self.reply.running

    def envelope(self, kind: str) -> dict[str, Any]:
        """The fields that every answer and every chunk has."""
        return {
            "object": kind,
            "id": self.id,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
        }

    def finish_reason(self, seq_index: int, reason: FinishReason | None) -> str | None:
        """OpenAI's word, once a sequence has ended."""
        if self.reply.calls_tools(seq_index, reason):
            return "tool_calls"
        return FINISH_REASONS[reason] if reason is not None else None


class OpenAIDialect:
    """Starts chat requests and renders them; `/invocations` uses it too."""

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

    def chat(
        self, body: dict[str, Any], context: RequestContext, *, takes_plain: bool = False
    ) -> Response:
        """Answer a chat body; `takes_plain` serves models without a template too."""
        received_at = time.monotonic()
        chat_request = parse(ChatRequest, body)
        context = adapter_selection.select_by_model(context, chat_request.model, self._service)
        chat = self._start(chat_request, context, received_at, takes_plain=takes_plain)
        if chat_request.stream:
            return self._stream(chat)
        collect(chat.running, self._metrics, context.connection)
        return json_response(_answer(chat))

    def render(self, chat_request: ChatRequest) -> str:
        """Make the prompt of a chat. Raises TemplateFailed or UnsupportedParameter."""
        return self._conversations.render(_chat_prompt(chat_request))

    def models(self, other_models: list[dict[str, Any]]) -> Response:
        """List what is served: the language model with its adapters, and those `beside` it."""
        if other_models and not self._service.has_engine:
            return json_response({"object": "list", "data": other_models})
        info = self._service.info
        model = {
            "id": info.model_id,
            "object": "model",
            "created": int(self._service.started_at),
            "owned_by": info.model_id,
        }
        tuned = [
            model | {"id": adapter.name, "parent": info.model_id}
            for adapter in self._service.status.adapters or []
        ]
        return json_response({"object": "list", "data": [model, *tuned, *other_models]})

    def _start(
        self,
        chat_request: ChatRequest,
        context: RequestContext,
        received_at: float,
        *,
        takes_plain: bool,
    ) -> Chat:
        service = self._service
        check(chat_request, self._limits, service.info.vocabulary)
        answer = read_grammar(
            chat_request.response_format, "response_format", self._limits, service.offload
        )
        chat_prompt = replace(_chat_prompt(chat_request, answer), takes_plain=takes_plain)
        prepared = self._conversations.prepare(chat_prompt, NAMES, chat_request.max_new_tokens)
        params = chat_request.params(
            prepared.max_new_tokens,
            service.info.vocabulary,
            top_logprobs=(chat_request.top_logprobs or 0) if chat_request.logprobs else None,
            grammar=prepared.grammar,
        )
        text = TextRules(received_at, chat_request.stops, num_sequences=chat_request.n or 1)
        reply = self._conversations.start(prepared, params, text, context)
        model = served_name(chat_request.model, service.info.model_id)
        chat_id = f"chatcmpl-{secrets.token_hex(12)}"
        return Chat(reply, chat_request, model, chat_id, int(time.time()))

    def _stream(self, chat: Chat) -> Response:
        begun: set[int] = set()

        def render(event: TextEvent) -> Iterator[object]:
            deltas = [_delta(chat, event.seq_index, delta) for delta in chat.reply.take(event)]
            is_first = event.seq_index not in begun
            is_last = event.finish_reason is not None
            if not deltas and (is_first or is_last or chat.chat_request.logprobs):
                deltas = [{}]
            if is_first and deltas:
                begun.add(event.seq_index)
                deltas[0] = {"role": "assistant", "content": ""} | deltas[0]
            for index, delta in enumerate(deltas):
                yield _chunk(chat, event, delta, is_end=index == len(deltas) - 1)
            if chat.running.is_finished and chat.chat_request.includes_usage:
                last_chunk = {"choices": [], "usage": usage(chat.reply)}
                yield chat.envelope("chat.completion.chunk") | last_chunk

        return stream(chat.running, render, openai_body, self._metrics, end=DONE)


def blueprint(dialect: OpenAIDialect, texts: Embeddings) -> Blueprint:
    """Make the routes."""
    routes = Blueprint("openai", __name__)

    @routes.post("/v1/chat/completions")
    @routes.post("/openai/v1/chat/completions")
    def chat_completions() -> Response:
        return dialect.chat(read_object(request), request_context())

    @routes.get("/v1/models")
    def models() -> Response:
        return dialect.models(texts.models() if texts.is_offered else [])

    return routes


def served_name(requested: str | None, served: str) -> str:
    """The model's name in an answer: as it was asked for.

    Clients of TGI write "tgi" for "whatever is served"; SageMaker's front door writes "".
    """
    return requested if requested and requested != "tgi" else served


def usage(reply: Reply) -> dict[str, Any]:
    """Token counts; `cached_tokens` are those of the prompt that were already computed."""
    prompt, new = reply.running.prompt_tokens, reply.running.completion_tokens
    counts: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": reply.running.prompt.cached_tokens},
    }
    thought = sum(builder.reasoning_tokens for builder in reply.builders)
    return counts | {"completion_tokens_details": {"reasoning_tokens": thought}}


def _chat_prompt(chat_request: ChatRequest, answer: str = "") -> ChatPrompt:
    tools = read_tools(
        chat_request.tools, chat_request.tool_choice, parallel=chat_request.parallel_tool_calls
    )
    messages, images = template_messages(chat_request)
    return ChatPrompt(
        messages,
        tools,
        tool_prompt=chat_request.tool_prompt,
        answer=answer,
        template_options=template_options(chat_request),
        continues=False
        if chat_request.add_generation_prompt
        else chat_request.continue_final_message,
        opens_reply=chat_request.add_generation_prompt is not False,
        images=images,
    )


def _answer(chat: Chat) -> dict[str, Any]:
    choices = [
        {
            "index": completion.seq_index,
            "message": _message(chat.reply.take_whole(completion)),
            "logprobs": _logprobs(chat, completion.events),
            "finish_reason": chat.finish_reason(completion.seq_index, completion.finish_reason),
        }
        for completion in chat.running.completions
    ]
    body = {"choices": choices, "usage": usage(chat.reply)}
    return chat.envelope("chat.completion") | body


def _message(builder: MessageBuilder) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": builder.content}
    if builder.reasoning:
        message["reasoning_content"] = builder.reasoning
    if builder.calls:
        message["content"] = builder.content or None
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in builder.calls
        ]
    return message


def _delta(chat: Chat, seq_index: int, delta: Delta) -> dict[str, Any]:
    """OpenAI's delta: a call has its id and its name once, then pieces of its arguments."""
    if delta.kind is DeltaKind.CONTENT:
        return {"content": delta.text}
    if delta.kind is DeltaKind.REASONING:
        return {"reasoning_content": delta.text}
    call: dict[str, Any] = {"index": delta.call_index}
    if delta.kind is DeltaKind.CALL:
        tool_call = chat.reply.builders[seq_index].calls[delta.call_index]
        function = {"name": tool_call.name, "arguments": ""}
        call |= {"id": tool_call.id, "type": "function", "function": function}
    else:
        call["function"] = {"arguments": delta.text}
    return {"tool_calls": [call]}


def _chunk(chat: Chat, event: TextEvent, delta: dict[str, Any], *, is_end: bool) -> dict[str, Any]:
    """One chunk; the token's log-probability and the end come with its last delta."""
    reason = chat.finish_reason(event.seq_index, event.finish_reason) if is_end else None
    choice = {
        "index": event.seq_index,
        "delta": delta,
        "logprobs": _logprobs(chat, [event]) if is_end else None,
        "finish_reason": reason,
    }
    chunk = chat.envelope("chat.completion.chunk") | {"choices": [choice]}
    return chunk | {"usage": None} if chat.chat_request.includes_usage else chunk


def _logprobs(chat: Chat, events: list[TextEvent]) -> dict[str, Any] | None:
    if not chat.chat_request.logprobs:
        return None
    content = [
        _logprob(event.token) | {"top_logprobs": [_logprob(token) for token in event.top]}
        for event in events
    ]
    return {"content": content}


def _logprob(token: TokenText) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.text.encode())}
