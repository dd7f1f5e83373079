"""vLLM's `/pooling`, `/score` and `/classify`."""

import secrets
import time
from collections.abc import Callable
from typing import Any

from flask import Blueprint, Response, request

from container.errors import UnsupportedParameter
from container.frontend.apis.embeddings.openai import writer
from container.frontend.apis.embeddings.peer_fields import refuse_peer_fields
from container.frontend.apis.embeddings.pooling_schema import (
    ClassifyRequest,
    PoolingBody,
    PoolingRequest,
    ScoreRequest,
)
from container.frontend.apis.text_dialect import TextDialect
from container.frontend.apis.text_inputs import as_inputs
from container.frontend.embedding.rows import Rows, TokenRows
from container.frontend.embedding.vectors import Floats, normalized
from container.frontend.generation.request_context import RequestContext
from container.frontend.web.http_request import request_context
from container.frontend.web.request_body import parse, read_object
from container.messages.embedder import EmbedderKind, EmbedInput, Pair

# The tasks of `/pooling` that each kind of model does; the first is its default.
TASKS = {
    "embedding": ("embed", "token_embed"),
    "sparse": ("embed_sparse on its own route",),
    "classifier": ("classify",),
    "reranker": ("classify", "score"),
    "late_interaction": ("token_embed",),
}


SCORING: tuple[EmbedderKind, ...] = ("classifier", "reranker")


class PoolingDialect(TextDialect):
    """Answers vLLM's bodies for embedding, rerank and classification models."""

    def pool(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Answer a vector, or the scores of the labels, for each input."""
        started = time.monotonic()
        refuse_peer_fields(body)
        pooling_request = parse(PoolingRequest, body)
        self._check_task(pooling_request.task)
        is_late = self._embeddings.info.kind == "late_interaction"
        if pooling_request.task == "token_embed" or is_late:
            return self._pool_tokens(pooling_request, context, started)
        rows = self._pool(pooling_request, self._on_wait(context))
        write = writer(pooling_request.encoding_format)
        data = [
            {"index": index, "object": "pooling", "data": write(row)}
            for index, row in enumerate(rows.values)
        ]
        return self._answer(pooling_request, "pool", data, rows, started)

    def score(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Answer a score for each pair: a reranker's, a late interaction's, or a cosine."""
        started = time.monotonic()
        refuse_peer_fields(body)
        score_request = parse(ScoreRequest, body)
        pairs, on_wait = score_request.pairs(), self._on_wait(context)
        options = score_request.pair_options()
        if self._embeddings.info.kind == "embedding":
            scores, rows = self._cosines(pairs, score_request, on_wait)
        else:
            raw = score_request.use_activation is False
            rows = self._embeddings.pair_scores(pairs, options, on_wait, raw=raw)
            scores = rows.values[:, 0].tolist()
        data = [
            {"index": index, "object": "score", "score": score}
            for index, score in enumerate(scores)
        ]
        return self._answer(score_request, "score", data, rows, started)

    def classify(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Answer the likeliest label of each input, and the probability of each label."""
        started = time.monotonic()
        refuse_peer_fields(body)
        classify_request = parse(ClassifyRequest, body)
        rows = self._embeddings.scores(
            as_inputs(classify_request.input),
            classify_request.options("input"),
            self._on_wait(context),
            raw=classify_request.use_activation is False,
            allowed=SCORING,
        )
        labels = rows.info.labels
        data = [
            {
                "index": index,
                "label": labels[int(row.argmax())],
                "probs": row.tolist(),
                "num_classes": len(row),
            }
            for index, row in enumerate(rows.values)
        ]
        return self._answer(classify_request, "classify", data, rows, started)

    def _pool_tokens(
        self, pooling_request: PoolingRequest, context: RequestContext, started: float
    ) -> Response:
        """Answer the vectors of each input's tokens."""
        has_other_form = (
            pooling_request.encoding_format == "base64" or pooling_request.dimensions is not None
        )
        if has_other_form:
            raise UnsupportedParameter(
                "`task` token_embed takes neither `dimensions` nor `encoding_format`: base64",
                field="task",
            )
        rows = self._embeddings.token_vectors(
            as_inputs(pooling_request.input),
            pooling_request.options("input"),
            self._on_wait(context),
        )
        normalizes = pooling_request.use_activation is not False
        vectors = [normalized(values) if normalizes else values for values in rows.values]
        data = [
            {"index": index, "object": "pooling", "data": values.tolist()}
            for index, values in enumerate(vectors)
        ]
        return self._answer(pooling_request, "pool", data, rows, started)

    def _check_task(self, task: str | None) -> None:
        tasks = TASKS[self._embeddings.info.kind]
        if task is not None and task not in tasks:
            raise UnsupportedParameter(
                f"`task` {task[:40]!r} is not supported by the served model; it supports "
                f"{' and '.join(tasks)}",
                field="task",
            )

    def _pool(self, pooling_request: PoolingRequest, on_wait: Callable[[], None]) -> Rows:
        inputs, options = as_inputs(pooling_request.input), pooling_request.options("input")
        if self._embeddings.info.kind == "embedding":
            return self._embeddings.vectors(
                inputs,
                options,
                on_wait,
                dimensions=pooling_request.dimensions,
                normalize=pooling_request.use_activation,
            )
        if pooling_request.dimensions is not None:
            raise UnsupportedParameter("`dimensions` needs an embedding model", field="dimensions")
        raw = pooling_request.use_activation is False
        return self._embeddings.scores(inputs, options, on_wait, raw=raw, allowed=SCORING)

    def _cosines(
        self, pairs: list[Pair], score_request: ScoreRequest, on_wait: Callable[[], None]
    ) -> tuple[list[float], Rows]:
        """The cosine of each pair; each text is embedded once on its side."""
        queries = {text: i for i, text in enumerate(dict.fromkeys(pair.first for pair in pairs))}
        documents = {text: i for i, text in enumerate(dict.fromkeys(pair.second for pair in pairs))}
        inputs: list[EmbedInput] = [*queries, *documents]
        options = score_request.pair_options()
        rows = self._embeddings.vectors(inputs, options, on_wait, num_queries=len(queries))
        vectors: Floats = normalized(rows.values)
        firsts, seconds = vectors[: len(queries)], vectors[len(queries) :]
        scores = [float(firsts[queries[p.first]] @ seconds[documents[p.second]]) for p in pairs]
        return scores, rows

    def _answer(
        self,
        body: PoolingBody,
        prefix: str,
        data: list[Any],
        rows: Rows | TokenRows,
        started: float,
    ) -> Response:
        answer = {
            "id": f"{prefix}-{body.request_id or body.rid or secrets.token_hex(12)}",
            "object": "list",
            "created": int(time.time()),
            "model": body.model or rows.info.model_id,
            "data": data,
            "usage": {
                "prompt_tokens": rows.num_tokens,
                "completion_tokens": 0,
                "total_tokens": rows.num_tokens,
            },
        }
        return self._respond(answer, started)


def blueprint(dialect: PoolingDialect) -> Blueprint:
    """Return the routes."""
    routes = Blueprint("pooling", __name__)

    @routes.post("/pooling")
    def pooling() -> Response:
        return dialect.pool(read_object(request), request_context())

    @routes.post("/score")
    @routes.post("/v1/score")
    def score() -> Response:
        return dialect.score(read_object(request), request_context())

    @routes.post("/classify")
    def classify() -> Response:
        return dialect.classify(read_object(request), request_context())

    return routes
