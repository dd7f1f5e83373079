"""OpenAI's `/v1/completions`: several prompts in one request, streams told apart by index.

Wire format: OpenAI's "Create completion" (legacy). Prompt i with n choices has the indices from
i * n on. Where OpenAI stops at 16 tokens without `max_tokens`, this fills the context, as TGI.
"""

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import msgspec
from flask import Blueprint, Response, request

from container.frontend.apis.grammar_fields import read_grammar
from container.frontend.apis.openai.chat import DONE, FINGERPRINT, FINISH_REASONS, served_name
from container.frontend.apis.openai.completions_schema import CompletionRequest, check
from container.frontend.generation import adapter_selection
from container.frontend.generation.limits import RequestLimits
from container.frontend.generation.request_context import RequestContext
from container.frontend.generation.running_request import (
    Completion,
    GroupEvent,
    RunningGroup,
    RunningRequest,
    TextEvent,
    TokenText,
    token_text,
)
from container.frontend.generation.service import FieldNames, Prompt, Service, TextRules
from container.frontend.observability.metrics import Metrics
from container.frontend.web.error_responses import openai_body
from container.frontend.web.http_request import request_context
from container.frontend.web.request_body import parse, read_object
from container.frontend.web.responses import collect, json_response, stream
from container.messages.engine import SamplingParams

NAMES = FieldNames(prompt="prompt", max_new_tokens="max_tokens")


@dataclass(frozen=True, slots=True)
class Completions:
    """A started request, with what its rendering needs."""

    group: RunningGroup
    completion_request: CompletionRequest
    model: str
    id: str
    created: int
    prompts: list[str]

    def envelope(self) -> dict[str, Any]:
        """The fields that every answer and every chunk has."""
        return {
            "object": "text_completion",
            "id": self.id,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
        }

    @property
    def usage(self) -> dict[str, Any]:
        """Token counts, summed over the prompts."""
        requests = self.group.requests
        prompt = sum(running.prompt_tokens for running in requests)
        new = sum(running.completion_tokens for running in requests)
        cached = sum(running.prompt.cached_tokens for running in requests)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": new,
            "total_tokens": prompt + new,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def choice_index(self, prompt_index: int, seq_index: int) -> int:
        """The place of a choice among those of all prompts."""
        return prompt_index * (self.completion_request.n or 1) + seq_index


class CompletionsDialect:
    """Starts completions and renders them; `/invocations` uses it too."""

    def __init__(self, service: Service, metrics: Metrics, limits: RequestLimits) -> None:
        self._service = service
        self._metrics = metrics
        self._limits = limits

    def complete(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Answer a completions body."""
        received_at = time.monotonic()
        completion_request = parse(CompletionRequest, body)
        model = completion_request.model
        context = adapter_selection.select_by_model(context, model, self._service)
        completions = self._start(completion_request, context, received_at)
        if completions.completion_request.stream:
            return self._stream(completions)
        collect(completions.group, self._metrics, context.connection)
        return json_response(self._answer(completions))

    def _start(
        self, completion_request: CompletionRequest, context: RequestContext, received_at: float
    ) -> Completions:
        service = self._service
        check(completion_request, self._limits, service.info.vocabulary)
        name = "grammar" if completion_request.grammar is not None else "response_format"
        grammar = read_grammar(
            completion_request.grammar or completion_request.response_format,
            name,
            self._limits,
            service.offload,
        )
        prompts = [self._prompt(prompt) for prompt in completion_request.prompts]
        params = [self._params(completion_request, prompt, grammar) for prompt in prompts]
        rules = TextRules(
            received_at, completion_request.stops, num_sequences=completion_request.n or 1
        )
        return Completions(
            service.start_group(prompts, params, rules, context),
            completion_request,
            served_name(completion_request.model, service.info.model_id),
            f"cmpl-{secrets.token_hex(12)}",
            int(time.time()),
            [
                self._echoed(prompt) if completion_request.echo else ""
                for prompt in completion_request.prompts
            ],
        )

    def _prompt(self, prompt: str | list[int]) -> Prompt:
        if isinstance(prompt, str):
            return Prompt(self._service.encode(prompt, NAMES), len(prompt))
        return Prompt(self._service.check_prompt(prompt, NAMES), 0)

    def _params(
        self, completion_request: CompletionRequest, prompt: Prompt, grammar: str
    ) -> SamplingParams:
        service = self._service
        room = service.room_for(len(prompt.ids), completion_request.max_tokens, NAMES)
        params = completion_request.params(
            room, service.info.vocabulary, top_logprobs=completion_request.logprobs, grammar=grammar
        )
        scores_prompt = bool(completion_request.echo) and completion_request.logprobs is not None
        return msgspec.structs.replace(params, prompt_logprobs=scores_prompt)

    def _echoed(self, prompt: str | list[int]) -> str:
        if isinstance(prompt, str):
            return prompt
        return self._service.tokenizer.decode(prompt, skip_special_tokens=True)

    def _answer(self, completions: Completions) -> dict[str, Any]:
        choices = []
        for index, running in enumerate(completions.group.requests):
            for completion in running.completions:
                assert completion.finish_reason is not None
                choices.append(
                    {
                        "index": completions.choice_index(index, completion.seq_index),
                        "text": completions.prompts[index] + completion.text,
                        "logprobs": self._logprobs(completions, running, completion),
                        "finish_reason": FINISH_REASONS[completion.finish_reason],
                    }
                )
        return completions.envelope() | {"choices": choices, "usage": completions.usage}

    def _logprobs(
        self, completions: Completions, running: RunningRequest, completion: Completion
    ) -> dict[str, Any] | None:
        if completions.completion_request.logprobs is None:
            return None
        tokens = self._prompt_tokens(running) if completions.completion_request.echo else []
        tops: list[list[TokenText]] = [[] for _ in tokens]
        tokens += [event.token for event in completion.events]
        tops += [event.top for event in completion.events]
        return _logprobs(tokens, tops, start=0)

    def _prompt_tokens(self, running: RunningRequest) -> list[TokenText]:
        """The prompt's tokens; the first has no log-probability, as nothing comes before it.

        In an echo the special ones are text like all others.
        """
        pairs = zip(running.prompt_ids, [None, *running.prompt.logprobs], strict=True)
        tokens = [token_text(self._service.tokenizer, *pair) for pair in pairs]
        return [replace(token, is_special=False) for token in tokens]

    def _stream(self, completions: Completions) -> Response:
        offsets: dict[int, int] = {}

        def render(known_event: GroupEvent) -> Iterator[object]:
            event = known_event.event
            index = completions.choice_index(known_event.index, event.seq_index)
            text, logprobs = event.text, None
            tokens, tops = [event.token], [event.top]
            if index not in offsets:
                text = completions.prompts[known_event.index] + text
                if (
                    completions.completion_request.echo
                    and completions.completion_request.logprobs is not None
                ):
                    prompt = self._prompt_tokens(completions.group.requests[known_event.index])
                    tokens, tops = [*prompt, event.token], [[] for _ in prompt] + [event.top]
            if completions.completion_request.logprobs is not None:
                logprobs = _logprobs(tokens, tops, start=offsets.get(index, 0))
            offsets[index] = offsets.get(index, 0) + len(text)
            if text or logprobs or event.finish_reason is not None:
                yield _chunk(completions, event, index, text, logprobs)
            if completions.group.is_finished and completions.completion_request.includes_usage:
                yield completions.envelope() | {"choices": [], "usage": completions.usage}

        return stream(completions.group, render, openai_body, self._metrics, end=DONE)


def blueprint(dialect: CompletionsDialect) -> Blueprint:
    """Make the route."""
    routes = Blueprint("completions", __name__)

    @routes.post("/v1/completions")
    def completions() -> Response:
        return dialect.complete(read_object(request), request_context())

    return routes


def _chunk(
    completions: Completions,
    event: TextEvent,
    index: int,
    text: str,
    logprobs: dict[str, Any] | None,
) -> dict[str, Any]:
    reason = event.finish_reason
    choice = {
        "index": index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": None if reason is None else FINISH_REASONS[reason],
    }
    chunk = completions.envelope() | {"choices": [choice]}
    return chunk | {"usage": None} if completions.completion_request.includes_usage else chunk


def _logprobs(
    tokens: list[TokenText], tops: list[list[TokenText]], *, start: int
) -> dict[str, Any]:
    """OpenAI's parallel lists; offsets count characters from the start of the choice's text."""
    lengths = [0 if token.is_special else len(token.text) for token in tokens]
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{likely.text: likely.logprob for likely in top} or None for top in tops],
        "text_offset": list(accumulate(lengths[:-1], initial=start)),
    }
