"""OpenAI's `/v1/embeddings` (also without `/v1`), and Cohere's and Jina's `/v1/rerank`.

Documents that are too long are cut by `/v1/rerank`, as those services do.
"""

import base64
import secrets
import time
from collections.abc import Callable
from typing import Any

from flask import Blueprint, Response, request

from container.frontend.apis.embeddings.openai_schema import CohereRerankRequest, OpenAIEmbedRequest
from container.frontend.apis.text_inputs import as_inputs
from container.frontend.generation.embedding_service import Embeddings, Floats, Rows, TextOptions
from container.frontend.generation.offloading import in_pieces
from container.frontend.generation.request_context import RequestContext
from container.frontend.observability.metrics import Metrics
from container.frontend.web.http_request import request_context
from container.frontend.web.request_body import parse, read_object
from container.frontend.web.responses import json_response, watch_wait, written
from container.messages.embedder import Pair


class EmbeddingsDialect:
    """Answers OpenAI's and Cohere's bodies; `/invocations` uses it too."""

    def __init__(self, embeddings: Embeddings, metrics: Metrics) -> None:
        self._embeddings = embeddings
        self._metrics = metrics

    def embed(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Answer an OpenAI body."""
        started = time.monotonic()
        embed_request = parse(OpenAIEmbedRequest, body)
        rows = self._embeddings.vectors(
            as_inputs(embed_request.input),
            embed_request.options("input"),
            self._on_wait(context),
            dimensions=embed_request.dimensions,
        )
        write = writer(embed_request.encoding_format)
        data = [
            written({"object": "embedding", "index": index, "embedding": write(vector)})
            for index, vector in enumerate(in_pieces(rows.values))
        ]
        return self._respond({"object": "list", "data": data}, embed_request.model, rows, started)

    def rerank(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Answer a Cohere or Jina body: the best documents first."""
        started = time.monotonic()
        rerank_request = parse(CohereRerankRequest, body)
        rerank_request.check()
        pairs = [Pair(rerank_request.query, text) for text in rerank_request.texts]
        options = TextOptions("documents", truncate=True)
        rows = self._embeddings.scores([*pairs], options, self._on_wait(context), raw=False)
        scores = rows.values[:, 0].tolist()
        best = sorted(range(len(scores)), key=lambda index: -scores[index])[: rerank_request.top_n]
        results: list[dict[str, Any]] = [
            {"index": index, "relevance_score": scores[index]} for index in best
        ]
        if rerank_request.return_documents:
            for result in results:
                result["document"] = {"text": rerank_request.texts[result["index"]]}
        answer = {
            "id": f"rerank-{secrets.token_hex(12)}",
            "results": results,
            "meta": {"tokens": {"input_tokens": rows.num_tokens}},
        }
        return self._respond(answer, rerank_request.model, rows, started)

    def _respond(
        self, answer: dict[str, Any], model: str | None, rows: Rows, started: float
    ) -> Response:
        usage = {"prompt_tokens": rows.num_tokens, "total_tokens": rows.num_tokens}
        self._metrics.count_handled(time.monotonic() - started)
        model = model or self._embeddings.info.model_id
        return json_response(answer | {"model": model, "usage": usage})

    def _on_wait(self, context: RequestContext) -> Callable[[], None]:
        return watch_wait(self._metrics, context)


def blueprint(dialect: EmbeddingsDialect) -> Blueprint:
    """Make the routes."""
    routes = Blueprint("embeddings", __name__)

    @routes.post("/v1/embeddings")
    @routes.post("/openai/v1/embeddings")
    @routes.post("/embeddings")
    def embeddings() -> Response:
        return dialect.embed(read_object(request), request_context())

    @routes.post("/v1/rerank")
    @routes.post("/v2/rerank")
    def rerank() -> Response:
        return dialect.rerank(read_object(request), request_context())

    return routes


def writer(encoding_format: str | None) -> Callable[[Floats], list[float] | str]:
    """Return what writes a vector in OpenAI's `encoding_format`."""
    return _base64 if encoding_format == "base64" else _floats


def _floats(vector: Floats) -> list[float]:
    numbers: list[float] = vector.tolist()
    return numbers


def _base64(vector: Floats) -> str:
    """Little-endian float32, as OpenAI's clients read it."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
