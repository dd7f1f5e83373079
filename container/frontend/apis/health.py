"""Open routes: health, the model's facts, metrics.

`/ping` is 200 only while the model is loaded and its engine alive; else 503 with the reason.
"""

from collections.abc import Callable
from typing import Any

from flask import Blueprint, Response

from container import __version__
from container.errors import ServingError
from container.frontend.clients.handler_client import HandlerClient
from container.frontend.generation.chat import Conversations
from container.frontend.generation.embedding_service import Embeddings
from container.frontend.generation.limits import RequestLimits
from container.frontend.generation.service import Service
from container.frontend.observability import metrics as prometheus
from container.frontend.observability.metrics import Metrics
from container.frontend.web import error_responses
from container.frontend.web.responses import json_response
from container.messages.embedder import EmbedderInfo
from container.messages.engine import EngineInfo


def blueprint(
    service: Service,
    metrics: Metrics,
    limits: RequestLimits,
    handler: HandlerClient | None,
    texts: Embeddings,
    conversations: Conversations,
    *,
    num_frontends: int,
    browser_page: Callable[[], Response | None],
) -> Blueprint:
    """Make the routes; `browser_page` returns what `/` is for a browser, None for others."""
    routes = Blueprint("health", __name__)

    @routes.route("/ping", methods=["GET", "POST"])  # vLLM answers both
    @routes.get("/health")
    def ping() -> Response:
        try:
            _check_ready(handler, service, texts, conversations)
        except ServingError as error:
            return error_responses.unhealthy(error)
        return Response(status=200)

    @routes.get("/")
    def root() -> Response:
        response = browser_page() or ping()
        response.vary.add("Accept")
        return response

    @routes.get("/info")
    def info() -> Response:
        if texts.is_offered and not service.has_engine:
            return json_response(_embedder_info(texts.info, limits))
        facts = _model_info(service.info, limits, conversations.style.format_name, num_frontends)
        return json_response(facts)

    @routes.get("/metrics")
    def show_metrics() -> Response:
        return Response(metrics.render(), content_type=prometheus.CONTENT_TYPE)

    return routes


def _check_ready(
    handler: HandlerClient | None,
    service: Service,
    texts: Embeddings,
    conversations: Conversations,
) -> None:
    """Raise ServingError unless everything that is served can answer."""
    if handler is not None:
        handler.check_ready()
    if service.has_engine:
        service.check_ready()
        _ = conversations.style  # learnt, and a warning logged, before the first request
    if texts.is_offered:
        texts.check_ready()


def _model_info(
    loaded: EngineInfo, limits: RequestLimits, tool_format: str | None, num_frontends: int
) -> dict[str, Any]:
    """Return what `/info` says of a language model: TGI's fields, and others."""
    return {
        "model_id": loaded.model_id,
        "model_sha": loaded.model_sha,
        "model_pipeline_tag": "image-text-to-text" if loaded.is_multimodal else "text-generation",
        "model_dtype": loaded.dtype,
        "model_device_type": loaded.device,
        "attention": loaded.attention,
        "fallbacks": loaded.fallbacks,
        "quantize": loaded.quantize,
        "reads_images": loaded.is_multimodal,
        "tool_format": tool_format,
        "tensor_parallel": loaded.tensor_parallel,
        "data_parallel": loaded.data_parallel,
        "max_input_tokens": loaded.max_input_tokens,
        "max_total_tokens": loaded.max_total_tokens,
        "max_batch_total_tokens": loaded.cache_tokens,
        "max_concurrent_requests": limits.max_concurrent_requests,
        "max_best_of": limits.max_best_of,
        "max_stop_sequences": limits.max_stops,
        "max_client_batch_size": limits.max_prompts,
        "validation_workers": num_frontends,
        "router": "container",
        "version": __version__,
    }


def _embedder_info(info: EmbedderInfo, limits: RequestLimits) -> dict[str, Any]:
    """What TEI's `/info` says, where no language model is served."""
    kind: dict[str, Any] = {info.kind: {"width": info.width}}
    if info.labels:
        kind[info.kind] = {"id2label": {str(i): label for i, label in enumerate(info.labels)}}
    return {
        "model_id": info.model_id,
        "model_sha": info.model_sha,
        "model_dtype": info.dtype,
        "model_type": kind,
        "model_device_type": info.device,
        "max_concurrent_requests": limits.max_concurrent_requests,
        "max_input_length": info.max_input_tokens,
        "max_client_batch_size": limits.max_embedding_inputs,
        "version": __version__,
    }
