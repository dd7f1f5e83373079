"""Routes without the API key: health, facts about the model, metrics.

`/ping` is 200 only while the model is loaded and its engine alive; else 503 with the reason.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flask import Blueprint, Response

from container import __version__
from container.errors import ServingError
from container.frontend.chat.conversations import Conversations
from container.frontend.clients.handler_client import HandlerClient
from container.frontend.embedding.service import Embeddings
from container.frontend.generation.limits import RequestLimits
from container.frontend.generation.service import Service
from container.frontend.observability import metrics as prometheus
from container.frontend.observability.metrics import Metrics
from container.frontend.web import error_responses
from container.frontend.web.responses import json_response
from container.messages.embedder import EmbedderInfo
from container.messages.engine import EngineInfo


@dataclass(frozen=True, slots=True)
class Readiness:
    """The parts of a server that must be ready; `handler` is None without user code."""

    service: Service
    handler: HandlerClient | None
    texts: Embeddings
    conversations: Conversations

    def check(self) -> None:
        """Raise the reason if a request could not be served now."""
        if self.handler is not None:
            self.handler.check_ready()
        if self.service.has_engine:
            self.service.check_ready()
            _ = self.conversations.style  # learnt, and a warning logged, before the first request
        if self.texts.is_offered:
            self.texts.check_ready()


def blueprint(
    readiness: Readiness,
    metrics: Metrics,
    limits: RequestLimits,
    *,
    num_frontends: int,
    browser_page: Callable[[], Response | None],
) -> Blueprint:
    """Return the routes; `browser_page` returns the page of `/` for browsers, None for others."""
    routes = Blueprint("health", __name__)

    @routes.route("/ping", methods=["GET", "POST"])  # vLLM answers both
    @routes.get("/health")
    def ping() -> Response:
        try:
            readiness.check()
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
        if readiness.texts.is_offered and not readiness.service.has_engine:
            return json_response(_embedder_info(readiness.texts.info, limits))
        loaded, style = readiness.service.info, readiness.conversations.style
        served = {
            "tool_format": style.format_name,
            "validation_workers": num_frontends,
            "fallbacks": loaded.fallbacks + readiness.texts.fallbacks,
            "not_proved": loaded.not_proved + readiness.texts.not_proved,
        }
        return json_response(_engine_info(loaded, limits) | served)

    @routes.get("/metrics")
    def show_metrics() -> Response:
        return Response(metrics.render(), content_type=prometheus.CONTENT_TYPE)

    return routes


def _engine_info(info: EngineInfo, limits: RequestLimits) -> dict[str, Any]:
    """Return TGI's `/info`, with this server's own facts about the model."""
    return {
        "model_id": info.model_id,
        "model_sha": info.model_sha,
        "model_pipeline_tag": "image-text-to-text" if info.is_multimodal else "text-generation",
        "model_dtype": info.dtype,
        "model_device_type": info.device,
        "cpu": info.cpu,
        "attention": info.attention,
        "not_proved": info.not_proved,
        "quantize": info.quantize,
        "reads_images": info.is_multimodal,
        "tensor_parallel": info.tensor_parallel,
        "data_parallel": info.data_parallel,
        "max_input_tokens": info.max_input_tokens,
        "max_total_tokens": info.max_total_tokens,
        "max_batch_total_tokens": info.cache_tokens,
        "state_slots": info.state_slots,
        "max_concurrent_requests": limits.max_concurrent_requests,
        "max_best_of": limits.max_best_of,
        "max_stop_sequences": limits.max_stops,
        "max_client_batch_size": limits.max_prompts,
        "router": "container",
        "version": __version__,
    }


def _embedder_info(info: EmbedderInfo, limits: RequestLimits) -> dict[str, Any]:
    """Return TEI's `/info`, for a server without a language model."""
    kind: dict[str, Any] = {info.kind: {"width": info.width}}
    if info.labels:
        kind[info.kind] = {"id2label": {str(i): label for i, label in enumerate(info.labels)}}
    return {
        "model_id": info.model_id,
        "model_sha": info.model_sha,
        "model_dtype": info.dtype,
        "model_type": kind,
        "model_device_type": info.device,
        "fallbacks": info.fallbacks,
        "not_proved": info.not_proved,
        "max_concurrent_requests": limits.max_concurrent_requests,
        "max_input_length": info.max_input_tokens,
        "max_client_batch_size": limits.max_embedding_inputs,
        "version": __version__,
    }
