"""OpenAI's `/v1/completions`: several prompts in one request, whose streams have indices.

Wire format: OpenAI's "Create completion" (legacy). Prompt i with n choices has the indices from
i * n on. Where OpenAI stops at 16 tokens without `max_tokens`, this fills the context, as TGI.
"""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from flask import Blueprint, Response, request

from container.errors import ServingError
from container.frontend.apis.generation_dialect import GenerationDialect
from container.frontend.apis.openai.chat import generation_options
from container.frontend.apis.openai.chat_rendering import DONE, served_name
from container.frontend.apis.openai.completions_rendering import Completions, answer, chunks
from container.frontend.apis.openai.completions_schema import CompletionRequest, check
from container.frontend.apis.openai.peer_fields import parse_request
from container.frontend.apis.openai.sampling_schema import with_prompt_logprobs
from container.frontend.apis.openai.structured_fields import read_structured
from container.frontend.generation.prompts import FieldNames, Prompt
from container.frontend.generation.request_context import RequestContext
from container.frontend.generation.running_group import GroupEvent
from container.frontend.generation.service import TextRules
from container.frontend.web.error_responses import openai_body
from container.frontend.web.http_request import request_context
from container.frontend.web.request_body import read_object
from container.grammar.shape import MessageShape, encode_shape
from container.messages.engine import SamplingParams

NAMES = FieldNames(prompt="prompt", max_new_tokens="max_tokens")


class CompletionsDialect(GenerationDialect[Completions]):
    """Starts completions and renders them; `/invocations` uses it too."""

    stream_end = DONE

    def complete(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Answer a completions body."""
        received_at = time.monotonic()
        completion_request = parse_request(CompletionRequest, body)
        start = partial(self._start, completion_request, received_at)
        return self._generate(generation_options(completion_request), start, context)

    def _start(
        self, completion_request: CompletionRequest, received_at: float, context: RequestContext
    ) -> Completions:
        service = self._service
        check(completion_request, self._limits, service.info.vocabulary)
        prompts = [
            self._prompt(completion_request, prompt) for prompt in completion_request.prompts
        ]
        answer = read_structured(completion_request, self._limits)
        grammar = encode_shape(MessageShape(answer=answer))
        params = [self._params(completion_request, prompt, grammar) for prompt in prompts]
        rules = TextRules(
            received_at,
            completion_request.stops,
            keep_stop=completion_request.includes_stop,
            num_sequences=completion_request.n or 1,
        )
        echoed = [
            self._echoed(prompt) if completion_request.echo else ""
            for prompt in completion_request.prompts
        ]
        group = service.start_group(prompts, params, rules, context)
        return Completions(
            group,
            completion_request,
            served_name(completion_request.model, group.requests[0].info.model_id),
            completion_request.name("cmpl"),
            int(time.time()),
            echoed,
        )

    def _prompt(self, completion_request: CompletionRequest, prompt: str | list[int]) -> Prompt:
        service, cut = self._service, completion_request.truncate_prompt_tokens
        if isinstance(prompt, str):
            adds = completion_request.add_special_tokens is not False
            return Prompt(
                service.prompts.encode(prompt, NAMES, add_special_tokens=adds, truncate=cut),
                len(prompt),
            )
        if cut is not None:
            prompt = prompt[-(cut if cut > 0 else service.info.max_input_tokens) :]
        return Prompt(service.prompts.check_prompt(prompt, NAMES), 0)

    def _params(
        self, completion_request: CompletionRequest, prompt: Prompt, grammar: str
    ) -> SamplingParams:
        service = self._service
        max_new_tokens = service.prompts.limit_new_tokens(
            len(prompt.ids), completion_request.max_tokens, NAMES
        )
        params = completion_request.params(
            max_new_tokens,
            service.info.vocabulary,
            top_logprobs=completion_request.logprobs,
            grammar=grammar,
            bad_words=service.prompts.word_ids(completion_request.bad_words or []),
        )
        return with_prompt_logprobs(params, completion_request.top_prompt_logprobs)

    def _echoed(self, prompt: str | list[int]) -> str:
        if isinstance(prompt, str):
            return prompt
        return self._service.tokenizer.decode(prompt, skip_special_tokens=True)

    def _body(self, completions: Completions) -> object:
        return answer(completions)

    def _events(self, completions: Completions, event: GroupEvent) -> Iterator[object]:
        return chunks(completions, event)

    def _error_event(self, completions: Completions, error: ServingError) -> object:
        return openai_body(error)


def blueprint(dialect: CompletionsDialect) -> Blueprint:
    """Return the route."""
    routes = Blueprint("completions", __name__)

    @routes.post("/v1/completions")
    def completions() -> Response:
        return dialect.complete(read_object(request), request_context())

    return routes
