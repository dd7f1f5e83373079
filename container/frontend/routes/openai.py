"""OpenAI's API: `/v1/chat/completions` and `/v1/models`."""

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flask import Blueprint, Response, request

from container import __version__
from container.frontend.answers import collect, json_response, stream
from container.frontend.bodies import parse, read_object
from container.frontend.metrics import Metrics
from container.frontend.problems import openai_body
from container.frontend.schemas.openai import ChatRequest, check, template_messages
from container.frontend.service import Completion, FieldNames, Service, TextEvent, random_seed
from container.messages import FinishReason, LogprobMode, SamplingParams

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

    completion: Completion
    ask: ChatRequest
    model: str
    id: str
    created: int

    @property
    def usage(self) -> dict[str, int]:
        """Token counts."""
        prompt, new = self.completion.prompt_tokens, self.completion.completion_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": new,
            "total_tokens": prompt + new,
        }

    def envelope(self, kind: str) -> dict[str, Any]:
        """The fields that every answer and every chunk has."""
        return {
            "object": kind,
            "id": self.id,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
        }


class OpenAIDialect:
    """Starts chat requests and renders them; `/invocations` uses it too."""

    def __init__(self, service: Service, metrics: Metrics, *, max_stops: int) -> None:
        self._service = service
        self._metrics = metrics
        self._max_stops = max_stops

    def chat(self, body: dict[str, Any]) -> Response:
        """Answer a chat body."""
        received_at = time.monotonic()
        ask = parse(ChatRequest, body)
        chat = self._start(ask, received_at)
        if ask.stream:
            return self._stream(chat)
        collect(chat.completion, self._metrics)
        return json_response(_answer(chat))

    def models(self) -> Response:
        """List the one model that is served."""
        info = self._service.info
        model = {
            "id": info.model_id,
            "object": "model",
            "created": int(self._service.started_at),
            "owned_by": info.model_id,
        }
        return json_response({"object": "list", "data": [model]})

    def _start(self, ask: ChatRequest, received_at: float) -> Chat:
        service = self._service
        check(ask, max_stops=self._max_stops)
        prompt = service.tokenizer.render_chat(template_messages(ask))
        # The template writes the special tokens itself.
        ids = service.encode(prompt, NAMES, add_special_tokens=False)
        room = service.room_for(len(ids), ask.max_new_tokens, NAMES)
        completion = service.start(
            ids,
            _sampling_params(ask, room),
            stops=ask.stops,
            keep_stop=False,
            received_at=received_at,
        )
        # Clients of TGI write "tgi" for "whatever is served"; SageMaker's front door writes "".
        served = service.info.model_id
        model = ask.model if ask.model and ask.model != "tgi" else served
        chat_id = f"chatcmpl-{secrets.token_hex(12)}"
        return Chat(completion, ask, model, chat_id, int(time.time()))

    def _stream(self, chat: Chat) -> Response:
        is_first = True

        def render(event: TextEvent) -> Iterator[object]:
            nonlocal is_first
            if event.text or event.finish_reason is not None or is_first or event.logprob:
                yield _chunk(chat, event, with_role=is_first)
                is_first = False
            if event.finish_reason is not None and chat.ask.includes_usage:
                yield chat.envelope("chat.completion.chunk") | {"choices": [], "usage": chat.usage}

        return stream(chat.completion, render, openai_body, self._metrics, end=DONE)


def blueprint(dialect: OpenAIDialect) -> Blueprint:
    """Make the routes."""
    routes = Blueprint("openai", __name__)

    @routes.post("/v1/chat/completions")
    @routes.post("/openai/v1/chat/completions")
    def chat_completions() -> Response:
        return dialect.chat(read_object(request))

    @routes.get("/v1/models")
    def models() -> Response:
        return dialect.models()

    return routes


def _sampling_params(ask: ChatRequest, max_new_tokens: int) -> SamplingParams:
    logprobs = LogprobMode.RAW if ask.logprobs else LogprobMode.NONE
    temperature = 1.0 if ask.temperature is None else ask.temperature
    if temperature == 0.0:
        return SamplingParams(max_new_tokens, logprobs=logprobs)
    return SamplingParams(
        max_new_tokens,
        temperature=temperature,
        top_k=ask.top_k or 0,
        top_p=1.0 if ask.top_p is None else ask.top_p,
        seed=random_seed() if ask.seed is None else ask.seed,
        logprobs=logprobs,
    )


def _answer(chat: Chat) -> dict[str, Any]:
    completion = chat.completion
    assert completion.finish_reason is not None
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": completion.text},
        "logprobs": _logprobs(chat, completion.events),
        "finish_reason": FINISH_REASONS[completion.finish_reason],
    }
    return chat.envelope("chat.completion") | {"choices": [choice], "usage": chat.usage}


def _chunk(chat: Chat, event: TextEvent, *, with_role: bool) -> dict[str, Any]:
    delta = {"role": "assistant"} if with_role else {}
    reason = event.finish_reason
    choice = {
        "index": 0,
        "delta": delta | {"content": event.text},
        "logprobs": _logprobs(chat, [event]),
        "finish_reason": FINISH_REASONS[reason] if reason is not None else None,
    }
    chunk = chat.envelope("chat.completion.chunk") | {"choices": [choice]}
    return chunk | {"usage": None} if chat.ask.includes_usage else chunk


def _logprobs(chat: Chat, events: list[TextEvent]) -> dict[str, Any] | None:
    if not chat.ask.logprobs:
        return None
    content = [
        {
            "token": event.token_text,
            "logprob": event.logprob,
            "bytes": list(event.token_text.encode()),
            "top_logprobs": [],
        }
        for event in events
    ]
    return {"content": content}
