"""TGI's generate API: `/generate`, `/generate_stream` and `/`; wire format of TGI 3.3."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flask import Blueprint, Response, request

from container.frontend.answers import collect, json_response, stream
from container.frontend.bodies import parse, read_object
from container.frontend.metrics import Metrics
from container.frontend.problems import tgi_body
from container.frontend.schemas.tgi import GenerateParameters, GenerateRequest, check
from container.frontend.service import Completion, FieldNames, Service, TextEvent, random_seed
from container.messages import FinishReason, LogprobMode, SamplingParams

NAMES = FieldNames(prompt="inputs", max_new_tokens="max_new_tokens")
FINISH_REASONS = {
    FinishReason.END_TOKEN: "eos_token",
    FinishReason.STOP: "stop_sequence",
    FinishReason.LENGTH: "length",
    FinishReason.ABORTED: "length",
}


@dataclass(frozen=True, slots=True)
class Generation:
    """A started generate request, with what its rendering needs."""

    completion: Completion
    parameters: GenerateParameters
    prompt: str
    echoes_prompt: bool

    @property
    def finish_reason(self) -> str:
        """TGI's word; an end token on the last allowed place counts as `length` there."""
        completion = self.completion
        assert completion.finish_reason is not None
        if completion.completion_tokens >= completion.params.max_new_tokens:
            return "length"
        return FINISH_REASONS[completion.finish_reason]

    @property
    def seed(self) -> int | None:
        """The seed that was used, if tokens were drawn."""
        params = self.completion.params
        return None if params.is_greedy else params.seed

    @property
    def text(self) -> str:
        """The completion, after the prompt where that was asked for."""
        return self.prompt + self.completion.text if self.echoes_prompt else self.completion.text


class TgiDialect:
    """Starts generate requests and renders them; `/invocations` uses it too."""

    def __init__(self, service: Service, metrics: Metrics, *, max_stops: int) -> None:
        self._service = service
        self._metrics = metrics
        self._max_stops = max_stops

    def generate(
        self, body: dict[str, Any], *, streams: bool | None, as_array: bool, echo_default: bool
    ) -> Response:
        """Answer a generate body; `streams` None lets its `stream` field decide."""
        received_at = time.monotonic()
        ask = parse(GenerateRequest, body)
        wants_stream = bool(ask.stream) if streams is None else streams
        generation = self._start(ask, wants_stream, echo_default, received_at)
        if wants_stream:
            return self._stream(generation)
        collect(generation.completion, self._metrics)
        answer = _answer(generation)
        return json_response([answer] if as_array else answer, headers=self._headers(generation))

    def _start(
        self, ask: GenerateRequest, streams: bool, echo_default: bool, received_at: float
    ) -> Generation:
        service, parameters = self._service, ask.settled
        check(
            parameters,
            max_stops=self._max_stops,
            max_input_tokens=service.info.max_input_tokens,
        )
        ids = service.encode(ask.inputs, NAMES, truncate=parameters.truncate)
        room = service.room_for(len(ids), parameters.max_new_tokens, NAMES)
        completion = service.start(
            ids,
            _sampling_params(parameters, room, wants_logprobs=streams or bool(parameters.details)),
            stops=parameters.stop or [],
            keep_stop=True,
            received_at=received_at,
        )
        echoes = parameters.return_full_text
        return Generation(
            completion, parameters, ask.inputs, echo_default if echoes is None else echoes
        )

    def _stream(self, generation: Generation) -> Response:
        def render(event: TextEvent) -> Iterator[object]:
            yield _stream_event(generation, event)

        headers = {
            "x-compute-type": self._service.info.device,
            "x-compute-characters": str(len(generation.prompt)),
        }
        return stream(generation.completion, render, tgi_body, self._metrics, headers=headers)

    def _headers(self, generation: Generation) -> dict[str, str]:
        """TGI's timing headers: seconds in x-compute-time, else whole milliseconds."""
        completion, times = generation.completion, generation.completion.times
        return {
            "x-compute-type": self._service.info.device,
            "x-compute-time": f"{times.total_s:.6f}",
            "x-compute-characters": str(len(generation.prompt)),
            "x-total-time": _ms(times.total_s),
            "x-validation-time": _ms(times.validation_s),
            "x-queue-time": _ms(times.queue_s),
            "x-inference-time": _ms(times.inference_s),
            "x-time-per-token": _ms(times.per_token_s),
            "x-prompt-tokens": str(completion.prompt_tokens),
            "x-generated-tokens": str(completion.completion_tokens),
        }


def blueprint(dialect: TgiDialect) -> Blueprint:
    """Make the routes."""
    routes = Blueprint("tgi", __name__)

    @routes.post("/generate")
    def generate() -> Response:
        return dialect.generate(
            read_object(request), streams=False, as_array=False, echo_default=False
        )

    @routes.post("/generate_stream")
    def generate_stream() -> Response:
        return dialect.generate(
            read_object(request), streams=True, as_array=False, echo_default=False
        )

    @routes.post("/")
    def compatible_generate() -> Response:
        return dialect.generate(
            read_object(request), streams=None, as_array=True, echo_default=True
        )

    return routes


def _sampling_params(
    parameters: GenerateParameters, max_new_tokens: int, *, wants_logprobs: bool
) -> SamplingParams:
    logprobs = LogprobMode.PROCESSED if wants_logprobs else LogprobMode.NONE
    if not parameters.samples:
        return SamplingParams(max_new_tokens, logprobs=logprobs)
    return SamplingParams(
        max_new_tokens,
        temperature=parameters.temperature or 1.0,
        top_k=parameters.top_k or 0,
        top_p=1.0 if parameters.top_p is None else parameters.top_p,
        seed=random_seed() if parameters.seed is None else parameters.seed,
        logprobs=logprobs,
    )


def _token(event: TextEvent) -> dict[str, Any]:
    return {
        "id": event.token_id,
        "text": event.token_text,
        "logprob": event.logprob,
        "special": event.is_special,
    }


def _answer(generation: Generation) -> dict[str, Any]:
    answer: dict[str, Any] = {"generated_text": generation.text}
    if generation.parameters.details:
        answer["details"] = {
            "finish_reason": generation.finish_reason,
            "generated_tokens": generation.completion.completion_tokens,
            "seed": generation.seed,
            "prefill": [],
            "tokens": [_token(event) for event in generation.completion.events],
        }
    return answer


def _stream_event(generation: Generation, event: TextEvent) -> dict[str, Any]:
    completion = generation.completion
    is_last = event.finish_reason is not None
    details = None
    if is_last and generation.parameters.details:
        details = {
            "finish_reason": generation.finish_reason,
            "generated_tokens": completion.completion_tokens,
            "seed": generation.seed,
            "input_length": completion.prompt_tokens,
        }
    return {
        "index": completion.completion_tokens,
        "token": _token(event),
        "generated_text": generation.text if is_last else None,
        "details": details,
    }


def _ms(seconds: float) -> str:
    return str(max(0, round(seconds * 1000)))
