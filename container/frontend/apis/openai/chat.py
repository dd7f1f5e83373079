"""OpenAI's `/v1/chat/completions`."""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from flask import Blueprint, Response, request

from container.errors import ServingError
from container.frontend.apis.generation_dialect import ChatDialect, GenerationOptions
from container.frontend.apis.openai.chat_rendering import (
    DONE,
    Chat,
    answer,
    chunks,
    served_name,
)
from container.frontend.apis.openai.chat_schema import (
    ChatFields,
    ChatRequest,
    check,
    template_messages,
    template_options,
)
from container.frontend.apis.openai.peer_fields import parse_request
from container.frontend.apis.openai.sampling_schema import GenerationFields, with_prompt_logprobs
from container.frontend.apis.openai.structured_fields import read_structured
from container.frontend.apis.openai.tools_schema import read_tools
from container.frontend.chat.chat_prompts import ChatPrompt
from container.frontend.chat.conversations import PreparedChat, Reply
from container.frontend.generation.completion import TextEvent
from container.frontend.generation.prompts import FieldNames
from container.frontend.generation.request_context import RequestContext
from container.frontend.generation.service import TextRules
from container.frontend.web.error_responses import openai_body
from container.frontend.web.http_request import request_context
from container.frontend.web.request_body import read_object
from container.grammar.forms import Answer
from container.messages.engine import SamplingParams

NAMES = FieldNames(prompt="messages", max_new_tokens="max_tokens")


class OpenAIDialect(ChatDialect[Chat]):
    """Starts chat requests and renders them; `/invocations` uses it too."""

    stream_end = DONE

    def chat(
        self, body: dict[str, Any], context: RequestContext, *, takes_plain: bool = False
    ) -> Response:
        """Answer a chat body; `takes_plain` serves models without a template too."""
        received_at = time.monotonic()
        chat_request = parse_request(ChatRequest, body)
        start = partial(self._start, chat_request, received_at, takes_plain=takes_plain)
        return self._generate(generation_options(chat_request), start, context)

    def render(self, chat_request: ChatRequest) -> str:
        """Render the prompt of a chat. Raises TemplateFailed or UnsupportedParameter."""
        return self._conversations.render(_chat_prompt(chat_request))

    def _start(
        self,
        chat_request: ChatRequest,
        received_at: float,
        context: RequestContext,
        *,
        takes_plain: bool,
    ) -> Chat:
        prepared, params = self.prepare(chat_request, takes_plain=takes_plain)
        rules = text_rules(chat_request, received_at)
        reply = self._conversations.start(prepared, params, rules, context)
        return started_chat(reply, chat_request, forces_call=prepared.must_call)

    def prepare(
        self, chat_request: ChatRequest, *, takes_plain: bool = False
    ) -> tuple[PreparedChat, SamplingParams]:
        """Check a chat, render and encode it. Raises the request's first error."""
        service = self._service
        check(chat_request, self._limits, service.info.vocabulary)
        answer = read_structured(chat_request, self._limits)
        chat_prompt = replace(_chat_prompt(chat_request, answer), takes_plain=takes_plain)
        prepared = self._conversations.prepare(chat_prompt, NAMES, chat_request.max_new_tokens)
        params = chat_request.params(
            prepared.max_new_tokens,
            service.info.vocabulary,
            top_logprobs=(chat_request.top_logprobs or 0) if chat_request.logprobs else None,
            grammar=prepared.grammar,
            bad_words=service.prompts.word_ids(chat_request.bad_words or []),
        )
        return prepared, with_prompt_logprobs(params, chat_request.prompt_logprobs)

    def _body(self, chat: Chat) -> object:
        return answer(chat)

    def _events(self, chat: Chat, event: TextEvent) -> Iterator[object]:
        return chunks(chat, event)

    def _error_event(self, chat: Chat, error: ServingError) -> object:
        return openai_body(error)


def blueprint(dialect: OpenAIDialect) -> Blueprint:
    """Return the routes."""
    routes = Blueprint("openai", __name__)

    @routes.post("/v1/chat/completions")
    @routes.post("/openai/v1/chat/completions")
    def chat_completions() -> Response:
        return dialect.chat(read_object(request), request_context())

    return routes


def text_rules(chat_request: ChatFields, received_at: float) -> TextRules:
    """Return how the completions of a chat become text."""
    return TextRules(
        received_at,
        chat_request.stops,
        keep_stop=chat_request.includes_stop,
        num_sequences=chat_request.n or 1,
    )


def started_chat(reply: Reply, chat_request: ChatRequest, *, forces_call: bool) -> Chat:
    """Name a chat whose reply has been started."""
    return Chat(
        reply,
        chat_request,
        served_name(chat_request.model, reply.running.info.model_id),
        chat_request.name("chatcmpl"),
        int(time.time()),
        forces_call=forces_call,
    )


def generation_options(fields: GenerationFields) -> GenerationOptions:
    """Return the options that every generating API has."""
    return GenerationOptions(
        bool(fields.stream),
        fields.request_deadline,
        fields.model,
        {"adapter_id": fields.adapter_id, "lora_path": fields.lora_path},
    )


def _chat_prompt(chat_request: ChatRequest, answer: Answer | None = None) -> ChatPrompt:
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
        add_special_tokens=chat_request.add_special_tokens,
        truncate=chat_request.truncate_prompt_tokens,
    )
