"""TGI's generate API: `/generate`, `/generate_stream` and `/`; wire format of TGI 3.3."""

import time
from dataclasses import dataclass
from typing import Any

import msgspec
from flask import Blueprint, Response, request

from container.errors import ServingError
from container.frontend.apis.generation_dialect import GenerationDialect, GenerationOptions
from container.frontend.apis.grammar_fields import read_grammar
from container.frontend.apis.tgi.schemas import GenerateParameters, GenerateRequest, check
from container.frontend.generation.completion import (
    Completion,
    TextEvent,
    TokenText,
    prompt_tokens,
)
from container.frontend.generation.offloading import in_pieces
from container.frontend.generation.prompts import FieldNames
from container.frontend.generation.request_context import RequestContext
from container.frontend.generation.running_request import RunningRequest
from container.frontend.generation.service import TextRules
from container.frontend.web.error_responses import tgi_body
from container.frontend.web.http_request import request_context
from container.frontend.web.request_body import parse, read_object
from container.frontend.web.responses import deadline_mark
from container.grammar.shape import MessageShape, encode_shape
from container.messages.engine import (
    FinishReason,
    LogprobMode,
    SamplingParams,
    Watermark,
    random_seed,
)

NAMES = FieldNames(prompt="inputs", max_new_tokens="max_new_tokens")
FINISH_REASONS = {
    FinishReason.END_TOKEN: "eos_token",
    FinishReason.STOP: "stop_sequence",
    FinishReason.LENGTH: "length",
    FinishReason.ABORTED: "length",
    FinishReason.DEADLINE: "length",
}


@dataclass(frozen=True, slots=True)
class Generation:
    """A started generate request, with what its rendering needs."""

    running: RunningRequest
    parameters: GenerateParameters
    prompt: str
    echoes_prompt: bool
    as_array: bool

    @property
    def best(self) -> Completion:
        """The completion that is answered: the likeliest per token, where there are several."""
        return max(
            self.running.completions,
            key=lambda completion: (completion.num_tokens > 0, completion.mean_logprob),
        )

    def finish_reason(self, completion: Completion) -> str:
        """TGI's word; an end token on the last allowed place counts as `length` there."""
        assert completion.finish_reason is not None
        if completion.num_tokens >= self.running.params.max_new_tokens:
            return "length"
        return FINISH_REASONS[completion.finish_reason]

    def seed(self, completion: Completion) -> int | None:
        """The seed that was used, if tokens were drawn."""
        params = self.running.params
        return None if params.is_greedy else params.seed_of(completion.seq_index)

    @property
    def has_details(self) -> bool:
        """Whether the answer has details: where they were asked for, or the deadline has cut it."""
        return self.parameters.wants_details or self.running.is_cut

    def text(self, completion: Completion) -> str:
        """A completion's text, after the prompt where that was asked for."""
        return self.prompt + completion.text if self.echoes_prompt else completion.text


class TgiDialect(GenerationDialect[Generation]):
    """Starts generate requests and renders them; `/invocations` uses it too."""

    def generate(
        self,
        body: dict[str, Any],
        context: RequestContext,
        *,
        streams: bool | None,
        as_array: bool,
        echo_default: bool,
    ) -> Response:
        """Answer a generate body; `streams` None lets its `stream` field decide."""
        received_at = time.monotonic()
        generate_request = parse(GenerateRequest, body)
        streams = bool(generate_request.stream) if streams is None else streams
        echoes = generate_request.resolved.return_full_text

        def start(context: RequestContext) -> Generation:
            return Generation(
                self._start(generate_request, received_at, context, streams=streams),
                generate_request.resolved,
                generate_request.inputs,
                echo_default if echoes is None else echoes,
                as_array,
            )

        return self._generate(generation_options(generate_request, streams=streams), start, context)

    def _start(
        self,
        generate_request: GenerateRequest,
        received_at: float,
        context: RequestContext,
        *,
        streams: bool,
    ) -> RunningRequest:
        service, parameters = self._service, generate_request.resolved
        check(parameters, self._limits, service.info.max_input_tokens, streams=streams)
        answer = read_grammar(parameters.grammar, "grammar", self._limits)
        text, images = service.prompts.take_markdown(generate_request.inputs, NAMES)
        prompt = service.prompts.prompt(text, NAMES, images, truncate=parameters.truncate)
        max_new_tokens = service.prompts.limit_new_tokens(
            len(prompt.ids), parameters.max_new_tokens, NAMES
        )
        params = self._sampling_params(
            parameters, max_new_tokens, encode_shape(MessageShape(answer=answer)), streams=streams
        )
        rules = TextRules(
            received_at,
            parameters.stop or [],
            keep_stop=True,
            num_sequences=parameters.best_of or 1,
        )
        return service.start(prompt, params, rules, context)

    def _body(self, generation: Generation) -> object:
        answer = self._answer(generation)
        return [answer] if generation.as_array else answer

    def _events(self, generation: Generation, event: TextEvent) -> list[object]:
        return [_stream_event(generation, event)]

    def _error_event(self, generation: Generation, error: ServingError) -> object:
        return tgi_body(error)

    def _sampling_params(
        self, parameters: GenerateParameters, max_new_tokens: int, grammar: str, *, streams: bool
    ) -> SamplingParams:
        p, limits = parameters, self._limits
        wants_logprobs = streams or p.wants_details or (p.best_of or 1) > 1
        mark = Watermark(limits.watermark_gamma, limits.watermark_delta) if p.watermark else None
        common = SamplingParams(
            max_new_tokens,
            repetition_penalty=p.repetition_penalty or 1.0,
            context_frequency_penalty=p.frequency_penalty or 0.0,
            watermark=mark,
            logprobs=LogprobMode.PROCESSED if wants_logprobs else LogprobMode.NONE,
            top_logprobs=p.top_n_tokens or 0,
            prompt_logprobs=bool(p.decoder_input_details),
            grammar=grammar,
        )
        if not p.samples:
            return common
        return msgspec.structs.replace(
            common,
            temperature=p.temperature or 1.0,
            top_k=p.top_k or 0,
            top_p=1.0 if p.top_p is None else p.top_p,
            typical_p=1.0 if p.typical_p is None else p.typical_p,
            seed=random_seed() if p.seed is None else p.seed,
        )

    def _answer(self, generation: Generation) -> dict[str, Any]:
        best = generation.best
        answer: dict[str, Any] = {"generated_text": generation.text(best)}
        if not generation.has_details:
            return answer
        answer["details"] = self._details(generation, best)
        others = [
            completion for completion in generation.running.completions if completion is not best
        ]
        if others:
            answer["details"]["best_of_sequences"] = [
                {"generated_text": generation.text(other)} | self._details(generation, other)
                for other in others
            ]
        return answer

    def _details(self, generation: Generation, completion: Completion) -> dict[str, Any]:
        return {
            "finish_reason": generation.finish_reason(completion),
            **deadline_mark(completion.finish_reason),
            "generated_tokens": completion.num_tokens,
            "seed": generation.seed(completion),
            "prefill": self._prefill(generation),
            "tokens": [_token(event.token) for event in in_pieces(completion.events)],
            **_top_tokens(completion),
        }

    def _prefill(self, generation: Generation) -> list[dict[str, Any]]:
        """The prompt's tokens; the first has no log-probability, since nothing comes before it."""
        if not generation.parameters.decoder_input_details:
            return []
        running = generation.running
        logprobs = running.prompt.logprobs
        tokens = prompt_tokens(running.prompt_ids, logprobs, running.tokenizer)
        return [{"id": t.token_id, "text": t.text, "logprob": t.logprob} for t in in_pieces(tokens)]


def blueprint(dialect: TgiDialect) -> Blueprint:
    """Return the routes."""
    routes = Blueprint("tgi", __name__)

    @routes.post("/generate")
    def generate() -> Response:
        body, context = read_object(request), request_context()
        return dialect.generate(body, context, streams=False, as_array=False, echo_default=False)

    @routes.post("/generate_stream")
    def generate_stream() -> Response:
        body, context = read_object(request), request_context()
        return dialect.generate(body, context, streams=True, as_array=False, echo_default=False)

    @routes.post("/")
    def compatible_generate() -> Response:
        body, context = read_object(request), request_context()
        return dialect.generate(body, context, streams=None, as_array=True, echo_default=True)

    return routes


def generation_options(generate_request: GenerateRequest, *, streams: bool) -> GenerationOptions:
    """Return the options that every generating API has."""
    parameters = generate_request.resolved
    return GenerationOptions(
        streams, parameters.request_deadline, adapter_ids={"adapter_id": parameters.adapter_id}
    )


def _token(token: TokenText) -> dict[str, Any]:
    return {
        "id": token.token_id,
        "text": token.text,
        "logprob": token.logprob,
        "special": token.is_special,
    }


def _top_tokens(completion: Completion) -> dict[str, Any]:
    top = [[_token(token) for token in event.top] for event in in_pieces(completion.events)]
    return {"top_tokens": top} if any(top) else {}


def _stream_event(generation: Generation, event: TextEvent) -> dict[str, Any]:
    completion = generation.running.completions[0]
    is_last = event.finish_reason is not None
    details = None
    if is_last and generation.has_details:
        details = {
            "finish_reason": generation.finish_reason(completion),
            **deadline_mark(completion.finish_reason),
            "generated_tokens": completion.num_tokens,
            "seed": generation.seed(completion),
            "input_length": generation.running.prompt_tokens,
        }
    top = {"top_tokens": [_token(token) for token in event.top]} if event.top else {}
    return {
        "index": completion.num_tokens,
        "token": _token(event.token),
        **top,
        "generated_text": generation.text(completion) if is_last else None,
        "details": details,
    }
