"""OpenAI's `/v1/models`: the language model, its adapters, and the embedding model."""

from typing import Any

from flask import Blueprint, Response

from container.errors import NotFound
from container.frontend.embedding.service import Embeddings
from container.frontend.generation.service import Service
from container.frontend.web.responses import json_response

Model = dict[str, Any]


def served_models(service: Service, texts: Embeddings) -> list[Model]:
    """List the served models. Raises Unavailable before they are loaded."""
    others = texts.models() if texts.is_offered else []
    if others and not service.has_engine:
        return others
    info = service.info
    model = {
        "id": info.model_id,
        "object": "model",
        "created": int(service.started_at),
        "owned_by": info.model_id,
        "root": info.model_id,
        "parent": None,
        "max_model_len": info.max_total_tokens,
    }
    tuned = [
        model | {"id": adapter.name, "root": adapter.source, "parent": info.model_id}
        for adapter in service.status.adapters or []
    ]
    return [model, *tuned, *others]


def blueprint(service: Service, texts: Embeddings) -> Blueprint:
    """Make the routes; ids of models may have slashes."""
    routes = Blueprint("models", __name__)

    @routes.get("/v1/models")
    def models() -> Response:
        return json_response({"object": "list", "data": served_models(service, texts)})

    @routes.get("/v1/models/<path:model_id>")
    def model(model_id: str) -> Response:
        known = {model["id"]: model for model in served_models(service, texts)}
        # The first slash of a folder's name is lost in the path.
        served = known.get(model_id) or known.get(f"/{model_id}")
        if served is None:
            raise NotFound(
                f"model {model_id[:200]!r} is not known; known are: {', '.join(known)}",
                field="model",
            )
        return json_response(served)

    return routes
