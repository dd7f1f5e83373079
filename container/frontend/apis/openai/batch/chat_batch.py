"""vLLM's `/v1/chat/completions/batch`: several conversations in one request, a choice for each.

Wire format: vLLM's BatchChatCompletionRequest (entrypoints/openai/chat_completion/protocol.py).
Choice i answers conversation i. There are no streams, and one choice for each conversation.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from flask import Blueprint, Response, request

from container.errors import RequestError, ServingError
from container.frontend.apis.generation_dialect import ChatDialect
from container.frontend.apis.openai.chat import (
    OpenAIDialect,
    generation_options,
    started_chat,
    text_rules,
)
from container.frontend.apis.openai.chat_rendering import Chat, choices_of, usage
from container.frontend.apis.openai.chat_schema import ChatFields, ChatRequest, Message
from container.frontend.apis.openai.peer_fields import parse_request
from container.frontend.apis.openai.sampling_schema import refuse, require
from container.frontend.chat.conversations import Conversations, PreparedChat
from container.frontend.generation.limits import RequestLimits
from container.frontend.generation.request_context import RequestContext
from container.frontend.generation.running_group import RunningGroup
from container.frontend.generation.service import Service
from container.frontend.observability.metrics import Metrics
from container.frontend.web.http_request import request_context
from container.frontend.web.request_body import Items, read_object
from container.messages.engine import SamplingParams

# Not offered for several conversations: the values that mean "off".
NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "stream": (None, False),
    "n": (None, 1),
    "prompt_logprobs": (None,),
}


class BatchChatRequest(ChatFields):
    """Conversations to be continued, each by itself, with the same options."""

    messages: Items[Items[Message]]

    def chats(self) -> list[ChatRequest]:
        """Return a request for each conversation."""
        fields = {name: getattr(self, name) for name in ChatFields.model_fields}
        return [ChatRequest.model_construct(messages=chat, **fields) for chat in self.messages]


@dataclass(frozen=True, slots=True)
class ChatBatch:
    """The started chats of one request."""

    running: RunningGroup
    chats: list[Chat]


class ChatBatchDialect(ChatDialect[ChatBatch]):
    """Answers conversations that run at the same time."""

    def __init__(
        self,
        service: Service,
        metrics: Metrics,
        limits: RequestLimits,
        conversations: Conversations,
        openai: OpenAIDialect,
    ) -> None:
        super().__init__(service, metrics, limits, conversations)
        self._openai = openai

    def answer(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Answer a body with several conversations."""
        received_at = time.monotonic()
        batch_request = parse_request(BatchChatRequest, body)
        start = partial(self._start, batch_request, received_at)
        return self._generate(generation_options(batch_request), start, context)

    def _start(
        self, batch_request: BatchChatRequest, received_at: float, context: RequestContext
    ) -> ChatBatch:
        refuse(batch_request, NOT_OFFERED)
        count, most = len(batch_request.messages), self._limits.max_prompts
        require(count > 0, "messages", "must not be an empty list")
        require(
            count <= most,
            "messages",
            f"has {count} conversations; the limit is {most} (MAX_CLIENT_BATCH_SIZE)",
        )
        requests = batch_request.chats()
        prepared = [self._prepare(index, chat) for index, chat in enumerate(requests)]
        chats = [chat for chat, _ in prepared]
        params = [chat_params for _, chat_params in prepared]
        rules = text_rules(batch_request, received_at)
        group, replies = self._conversations.start_group(chats, params, rules, context)
        return ChatBatch(
            group,
            [
                started_chat(reply, chat_request, forces_call=chat.must_call)
                for reply, chat_request, chat in zip(replies, requests, chats, strict=True)
            ],
        )

    def _prepare(self, index: int, chat: ChatRequest) -> tuple[PreparedChat, SamplingParams]:
        """Prepare one conversation; an error of its messages names it."""
        try:
            return self._openai.prepare(chat)
        except RequestError as error:
            if error.field is None or not error.field.startswith("messages"):
                raise
            text = error.message.replace("`messages", f"`messages[{index}]", 1)
            field = error.field.replace("messages", f"messages[{index}]", 1)
            raise type(error)(text, field=field) from error

    def _body(self, batch: ChatBatch) -> object:
        choices = [
            choice | {"index": index}
            for index, chat in enumerate(batch.chats)
            for choice in choices_of(chat)
        ]
        counts = usage(*(chat.reply for chat in batch.chats))
        return batch.chats[0].envelope("chat.completion") | {"choices": choices, "usage": counts}

    def _events(self, answer: ChatBatch, event: Any) -> Iterable[object]:
        """Raise: `stream` is refused."""
        raise NotImplementedError

    def _error_event(self, answer: ChatBatch, error: ServingError) -> NoReturn:
        """Raise: `stream` is refused."""
        raise NotImplementedError


def blueprint(dialect: ChatBatchDialect) -> Blueprint:
    """Return the route."""
    routes = Blueprint("chat_batch", __name__)

    @routes.post("/v1/chat/completions/batch")
    def chat_batch() -> Response:
        return dialect.answer(read_object(request), request_context())

    return routes
