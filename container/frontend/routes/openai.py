"""OpenAI's API: `/v1/chat/completions` and `/v1/models`."""

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from flask import Blueprint, Response, request

from container import __version__
from container.frontend.answers import collect, json_response, stream
from container.frontend.bodies import parse, read_object
from container.frontend.completion import RunningRequest, TextEvent, TokenText
from container.frontend.limits import RequestLimits
from container.frontend.metrics import Metrics
from container.frontend.problems import openai_body
from container.frontend.schemas.grammar import read_grammar
from container.frontend.schemas.openai import ChatRequest, check, template_messages
from container.frontend.service import FieldNames, Service, random_seed
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

    running: RunningRequest
    ask: ChatRequest
    model: str
    id: str
    created: int

    @property
    def usage(self) -> dict[str, Any]:
        """Token counts; `cached_tokens` are those of the prompt that were already computed."""
        prompt, new = self.running.prompt_tokens, self.running.completion_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": new,
            "total_tokens": prompt + new,
            "prompt_tokens_details": {"cached_tokens": self.running.prompt.cached_tokens},
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

    def __init__(self, service: Service, metrics: Metrics, limits: RequestLimits) -> None:
        self._service = service
        self._metrics = metrics
        self._limits = limits

    def chat(self, body: dict[str, Any]) -> Response:
        """Answer a chat body."""
        received_at = time.monotonic()
        ask = parse(ChatRequest, body)
        chat = self._start(ask, received_at)
        if ask.stream:
            return self._stream(chat)
        collect(chat.running, self._metrics)
        return json_response(_answer(chat))

    def render(self, ask: ChatRequest) -> str:
        """Make the prompt of a chat. Raises TemplateFailed or UnsupportedParameter."""
        return self._service.tokenizer.render_chat(template_messages(ask))

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
        check(ask, self._limits, service.info.vocabulary)
        prompt = self.render(ask)
        grammar = read_grammar(
            ask.response_format, "response_format", self._limits, service.offload
        )
        # The template writes the special tokens itself.
        ids = service.encode(prompt, NAMES, add_special_tokens=False)
        room = service.room_for(len(ids), ask.max_new_tokens, NAMES)
        running = service.start(
            ids,
            _sampling_params(ask, room, service.info.vocabulary, grammar),
            stops=ask.stops,
            keep_stop=False,
            received_at=received_at,
            num_sequences=ask.n or 1,
            prompt_chars=len(prompt),
        )
        # Clients of TGI write "tgi" for "whatever is served"; SageMaker's front door writes "".
        served = service.info.model_id
        model = ask.model if ask.model and ask.model != "tgi" else served
        chat_id = f"chatcmpl-{secrets.token_hex(12)}"
        return Chat(running, ask, model, chat_id, int(time.time()))

    def _stream(self, chat: Chat) -> Response:
        begun: set[int] = set()

        def render(event: TextEvent) -> Iterator[object]:
            is_first = event.seq_index not in begun
            is_last = event.finish_reason is not None
            if event.text or is_first or is_last or chat.ask.logprobs:
                begun.add(event.seq_index)
                yield _chunk(chat, event, with_role=is_first)
            if chat.running.is_finished and chat.ask.includes_usage:
                yield chat.envelope("chat.completion.chunk") | {"choices": [], "usage": chat.usage}

        return stream(chat.running, render, openai_body, self._metrics, end=DONE)


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


def _sampling_params(
    ask: ChatRequest, max_new_tokens: int, vocabulary: int, grammar: str
) -> SamplingParams:
    temperature = 1.0 if ask.temperature is None else ask.temperature
    common = SamplingParams(
        max_new_tokens,
        repetition_penalty=ask.repetition_penalty or 1.0,
        frequency_penalty=ask.frequency_penalty or 0.0,
        presence_penalty=ask.presence_penalty or 0.0,
        logit_bias=ask.biases(vocabulary),
        min_tokens=ask.min_tokens or 0,
        stop_token_ids=ask.stop_token_ids or [],
        ignore_eos=bool(ask.ignore_eos),
        logprobs=LogprobMode.RAW if ask.logprobs else LogprobMode.NONE,
        top_logprobs=ask.top_logprobs or 0,
        grammar=grammar,
    )
    if temperature == 0.0:
        return common
    return msgspec.structs.replace(
        common,
        temperature=temperature,
        top_k=ask.top_k or 0,
        top_p=1.0 if ask.top_p is None else ask.top_p,
        min_p=ask.min_p or 0.0,
        seed=random_seed() if ask.seed is None else ask.seed,
    )


def _answer(chat: Chat) -> dict[str, Any]:
    choices = [
        {
            "index": completion.seq_index,
            "message": {"role": "assistant", "content": completion.text},
            "logprobs": _logprobs(chat, completion.events),
            "finish_reason": _finish_reason(completion.finish_reason),
        }
        for completion in chat.running.completions
    ]
    return chat.envelope("chat.completion") | {"choices": choices, "usage": chat.usage}


def _chunk(chat: Chat, event: TextEvent, *, with_role: bool) -> dict[str, Any]:
    delta = {"role": "assistant"} if with_role else {}
    choice = {
        "index": event.seq_index,
        "delta": delta | {"content": event.text},
        "logprobs": _logprobs(chat, [event]),
        "finish_reason": _finish_reason(event.finish_reason),
    }
    chunk = chat.envelope("chat.completion.chunk") | {"choices": [choice]}
    return chunk | {"usage": None} if chat.ask.includes_usage else chunk


def _finish_reason(reason: FinishReason | None) -> str | None:
    return FINISH_REASONS[reason] if reason is not None else None


def _logprobs(chat: Chat, events: list[TextEvent]) -> dict[str, Any] | None:
    if not chat.ask.logprobs:
        return None
    content = [
        _logprob(event.token) | {"top_logprobs": [_logprob(token) for token in event.top]}
        for event in events
    ]
    return {"content": content}


def _logprob(token: TokenText) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.text.encode())}
