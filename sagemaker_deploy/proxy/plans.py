"""Decides for a request and a container: the body and route, the translation, the join.

This project's containers and vLLM's serve all routes through `route=` in the custom attributes.
TGI's and LMI's know the shapes of `/invocations` only, so the rest is translated.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from sagemaker_deploy.proxy.targets import ContainerKind, Target
from sagemaker_deploy.proxy.translation import generate_request
from sagemaker_deploy.proxy.translation.anthropic_events import MessagesFromChat
from sagemaker_deploy.proxy.translation.anthropic_request import chat_from_messages
from sagemaker_deploy.proxy.translation.events import Json, Translator
from sagemaker_deploy.proxy.translation.generate_events import (
    ChunksFromGenerate,
    GenerateFromChunks,
    GenerateFromLmi,
)
from sagemaker_deploy.proxy.translation.joins import JOINS, GenerateJoin, Join
from sagemaker_deploy.proxy.translation.unsupported import Unsupported


class Api(StrEnum):
    """The API of a client's request."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    GENERATE = "generate"
    EMBEDDINGS = "embeddings"
    OTHER = "other"  # routes that only ours and vLLM's containers have


GENERATING = (Api.CHAT, Api.COMPLETIONS, Api.RESPONSES, Api.MESSAGES, Api.GENERATE)
TYPED = (Api.MESSAGES, Api.RESPONSES)
WITH_DONE = (Api.CHAT, Api.COMPLETIONS)
ROUTED = (ContainerKind.OURS, ContainerKind.VLLM)
# TGI before 2.1 needs a model in chats and ignores it; later any other name is an adapter's.
TGI_MODEL = "tgi"


@dataclass(frozen=True, slots=True)
class Container:
    """Whose image an endpoint runs, and whether it takes `messages`."""

    kind: ContainerKind
    has_chat: bool = True


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """A client's request; `model` is the name in it, `is_alias` whether it is the proxy's own."""

    api: Api
    path: str
    body: Json
    model: str
    is_alias: bool = True

    @property
    def wants_stream(self) -> bool:
        """Whether the client reads a stream."""
        if self.path == "/generate_stream":
            return True
        return self.path != "/generate" and self.body.get("stream") is True


@dataclass(frozen=True, slots=True)
class Plan:
    """One invocation. Without translators a stream goes to the client as it comes."""

    body: Json
    streams: bool
    route: str | None = None
    translators: tuple[Callable[[], Translator], ...] = ()
    join: Callable[[], Join] | None = None
    finish: Callable[[Any], Any] = field(default=lambda answer: answer)


def make_plan(request: ClientRequest, container: Container, target: Target) -> Plan:
    """Plan the invocation for a request. Raises Unsupported."""
    if container.kind not in ROUTED:
        return _translated(request, container, target)
    if request.api is Api.GENERATE and container.kind is ContainerKind.VLLM:
        return _generate_on_vllm(request, target)
    return _routed(request, container, target)


def _routed(request: ClientRequest, container: Container, target: Target) -> Plan:
    """Plan the client's own body on its own route."""
    body = _with_model(request, container, target)
    streams = request.api in GENERATING and (request.wants_stream or _can_stream(request))
    route: str | None = request.path.removeprefix("/openai")
    if request.api is Api.GENERATE:
        route = ("/generate_stream" if streams else "/generate") if route != "/" else None
    if streams:
        body = _streamed(request, body)
    plan = Plan(body, streams, route, join=_join(request))
    return _as_array(plan) if request.path == "/" and streams else plan


def _translated(request: ClientRequest, container: Container, target: Target) -> Plan:
    """Plan a body that TGI's or LMI's `/invocations` takes."""
    if request.api is Api.MESSAGES and request.path == "/v1/messages":
        body = chat_from_messages(request.body) | {"stream_options": {"include_usage": True}}
        plan = _chat(replace(request, api=Api.CHAT, body=body), container, target)
        translators = (*plan.translators, lambda: MessagesFromChat(request.model))
        return Plan(plan.body, True, translators=translators, join=_join(request))
    if request.api is Api.CHAT:
        return _chat(request, container, target)
    if request.api is Api.COMPLETIONS:
        generate = generate_request.generate_from_completion(request.body)
        return Plan(generate, True, translators=(_chunks(request),), join=_join(request))
    if request.api is Api.GENERATE:
        return _generate(request, container)
    if request.api is Api.EMBEDDINGS:
        vectors = {"inputs": request.body.get("input")}
        return Plan(vectors, False, finish=lambda answer: _embeddings(answer, request.model))
    raise Unsupported(request.path, f"the container ({container.kind}) has no such API")


def _chat(request: ClientRequest, container: Container, target: Target) -> Plan:
    if container.has_chat:
        streams = request.wants_stream or _can_stream(request)
        body = _with_model(request, container, target)
        body = _streamed(request, body) if streams else body
        return Plan(body, streams, join=_join(request))
    body = generate_request.generate_from_chat(request.body, target.chat_template)
    return Plan(body, True, translators=(_chunks(request),), join=_join(request))


def _generate(request: ClientRequest, container: Container) -> Plan:
    parameters = dict(request.body.get("parameters") or {})
    if request.path != "/":
        parameters.setdefault("return_full_text", False)
    streams = request.wants_stream or _can_stream(request)
    body = {"inputs": request.body.get("inputs"), "parameters": parameters, "stream": streams}
    is_lmi = container.kind is ContainerKind.LMI
    plan = Plan(body, streams, translators=(GenerateFromLmi,) * is_lmi, join=_join(request))
    return _as_array(plan) if request.path == "/" and streams else plan


def _generate_on_vllm(request: ClientRequest, target: Target) -> Plan:
    body = generate_request.completion_from_generate(request.body)
    if target.served_model:
        body["model"] = target.served_model
    translators = (GenerateFromChunks,)
    plan = Plan(body, True, "/v1/completions", translators, _join(request))
    return _as_array(plan) if request.path == "/" else plan


def _as_array(plan: Plan) -> Plan:
    return replace(plan, finish=lambda answer: [answer])


def _with_model(request: ClientRequest, container: Container, target: Target) -> Json:
    """Name the model as the container knows it: its own, or, unknown here, perhaps an adapter."""
    body = {key: value for key, value in request.body.items() if key != "model"}
    if target.served_model:
        return body | {"model": target.served_model}
    if container.kind is ContainerKind.OURS and not request.is_alias:
        return body | {"model": request.model}
    if request.api is Api.MESSAGES and container.kind is ContainerKind.VLLM:
        return body | {"model": ""}
    if container.kind is ContainerKind.TGI:
        return body | {"model": TGI_MODEL}
    return body


def _can_stream(request: ClientRequest) -> bool:
    """Return whether a stream has all that the whole answer has."""
    body = request.body
    if request.api is Api.GENERATE:
        parameters = body.get("parameters") or {}
        return not parameters.get("decoder_input_details") and not _several(parameters)
    return body.get("prompt_logprobs") is None and not _several(body)


def _several(parameters: Json) -> bool:
    return (parameters.get("best_of") or 1) != 1


def _streamed(request: ClientRequest, body: Json) -> Json:
    body = body | {"stream": True}
    if request.api in WITH_DONE and not request.wants_stream:
        body["stream_options"] = {"include_usage": True}
    return body


def _join(request: ClientRequest) -> Callable[[], Join] | None:
    if request.wants_stream or request.api not in GENERATING:
        return None
    if request.api is Api.GENERATE:
        details = bool((request.body.get("parameters") or {}).get("details"))
        return lambda: GenerateJoin(details=details)
    return JOINS[request.api]


def _chunks(request: ClientRequest) -> Callable[[], Translator]:
    stop = generate_request.stops(request.body)
    is_chat = request.api is Api.CHAT
    return lambda: ChunksFromGenerate(request.model, stop, chat=is_chat)


def _embeddings(answer: Any, model: str) -> Json:
    """Translate vectors, as TEI's images answer them, to OpenAI's object."""
    if isinstance(answer, dict):
        return answer
    data = [
        {"object": "embedding", "index": index, "embedding": vector}
        for index, vector in enumerate(answer)
    ]
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    return {"object": "list", "data": data, "model": model, "usage": usage}
