"""OpenAI's `/v1/embeddings` (also without `/v1`), Cohere's `/v2/embed`, Cohere's and Jina's rerank.

Documents that are too long are cut by `/v1/rerank`, as those services do.
"""

import base64
import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from flask import Blueprint, Response, request

from container.errors import InvalidParameter
from container.frontend.apis.embeddings.cohere_schema import CohereEmbedRequest
from container.frontend.apis.embeddings.openai_schema import CohereRerankRequest, OpenAIEmbedRequest
from container.frontend.apis.embeddings.peer_fields import refuse_peer_fields
from container.frontend.apis.text_dialect import Ranking, TextDialect
from container.frontend.apis.text_inputs import as_inputs
from container.frontend.embedding.rows import Rows
from container.frontend.embedding.service import TextOptions
from container.frontend.embedding.vectors import Floats, packed_bits
from container.frontend.generation.offloading import in_pieces
from container.frontend.generation.request_context import RequestContext
from container.frontend.web.http_request import request_context
from container.frontend.web.request_body import parse, read_object
from container.frontend.web.responses import written


class EmbeddingsDialect(TextDialect):
    """Answers OpenAI's and Cohere's bodies; `/invocations` uses it too."""

    def embed(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Answer an OpenAI body."""
        started = time.monotonic()
        refuse_peer_fields(body)
        embed_request = parse(OpenAIEmbedRequest, body)
        rows = self._embeddings.vectors(
            as_inputs(embed_request.input),
            embed_request.options("input"),
            self._on_wait(context),
            dimensions=embed_request.dimensions,
            normalize=embed_request.use_activation,
        )
        write = writer(embed_request.encoding_format)
        data = [
            written({"object": "embedding", "index": index, "embedding": write(vector)})
            for index, vector in enumerate(in_pieces(rows.values))
        ]
        answer = {"object": "list", "data": data}
        return self._respond(answer | self._usage(embed_request.model, rows), started)

    def embed_by_types(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Answer a Cohere body: the vectors in each of the types asked for."""
        started = time.monotonic()
        refuse_peer_fields({name: value for name, value in body.items() if name != "inputs"})
        embed_request = parse(CohereEmbedRequest, body)
        writers = _type_writers(embed_request.embedding_types or ["float"])
        texts = embed_request.read_texts()
        rows = self._embeddings.vectors(
            as_inputs(texts),
            embed_request.options(self._embeddings.info.prompts),
            self._on_wait(context),
            dimensions=embed_request.output_dimension,
            normalize=None,
        )
        vectors = {
            name: [written(write(vector)) for vector in in_pieces(rows.values)]
            for name, write in writers.items()
        }
        billed = {"input_tokens": rows.num_tokens}
        answer = {
            "id": f"embd-{secrets.token_hex(12)}",
            "response_type": "embeddings_by_type",
            "embeddings": vectors,
            "texts": texts,
            "meta": {"api_version": {"version": "2"}, "billed_units": billed},
        }
        return self._respond(answer, started)

    def rerank(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Answer a Cohere or Jina body: the best documents first."""
        started = time.monotonic()
        refuse_peer_fields(body)
        rerank_request = parse(CohereRerankRequest, body)
        rerank_request.check()
        texts = rerank_request.texts
        options = rerank_request.cut_sides(
            TextOptions("documents", truncate=True, query_field="query")
        )
        raw = rerank_request.use_activation is False
        ranking = self._rank(rerank_request.query, texts, options, context, raw=raw)
        results: list[dict[str, Any]] = [
            {"index": index, "relevance_score": score}
            for index, score in ranking.scores[: rerank_request.top_n or None]
        ]
        if rerank_request.return_documents is not False:
            for result in results:
                result["document"] = {"text": texts[result["index"]]}
        answer = {
            "id": f"rerank-{rerank_request.request_id or secrets.token_hex(12)}",
            "results": results,
            "meta": {"tokens": {"input_tokens": ranking.num_tokens}},
        }
        answer |= self._usage(rerank_request.model, ranking)
        return self._respond(answer, started)

    @staticmethod
    def _usage(model: str | None, rows: Rows | Ranking) -> dict[str, Any]:
        """Return the fields with the model's name and the usage."""
        usage = {"prompt_tokens": rows.num_tokens, "total_tokens": rows.num_tokens}
        return {"model": model or rows.info.model_id, "usage": usage}


def blueprint(dialect: EmbeddingsDialect) -> Blueprint:
    """Return the routes."""
    routes = Blueprint("embeddings", __name__)

    @routes.post("/v1/embeddings")
    @routes.post("/openai/v1/embeddings")
    @routes.post("/embeddings")
    def embeddings() -> Response:
        return dialect.embed(read_object(request), request_context())

    @routes.post("/v2/embed")
    def embed_by_types() -> Response:
        return dialect.embed_by_types(read_object(request), request_context())

    @routes.post("/v1/rerank")
    @routes.post("/v2/rerank")
    def rerank() -> Response:
        return dialect.rerank(read_object(request), request_context())

    return routes


def _type_writers(names: list[str]) -> dict[str, Callable[[Floats], Any]]:
    """Return what writes a vector in each of Cohere's types. Raises InvalidParameter."""
    known: dict[str, Callable[[Floats], Any]] = {
        "float": _floats,
        "base64": _base64,
        "binary": partial(packed_bits, is_signed=True),
        "ubinary": partial(packed_bits, is_signed=False),
    }
    for name in names:
        if name not in known:
            raise InvalidParameter(
                f"`embedding_types` has {name[:40]!r}; this server has {', '.join(known)}",
                field="embedding_types",
            )
    return {name: known[name] for name in names}


def writer(encoding_format: str | None) -> Callable[[Floats], list[float] | str]:
    """Return what writes a vector in OpenAI's `encoding_format`."""
    return _base64 if encoding_format == "base64" else _floats


def _floats(vector: Floats) -> list[float]:
    numbers: list[float] = vector.tolist()
    return numbers


def _base64(vector: Floats) -> str:
    """Little-endian float32, as OpenAI's clients read it."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
