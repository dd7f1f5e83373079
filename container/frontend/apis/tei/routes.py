"""Text Embeddings Inference's API: `/embed` and its kin, `/similarity`, `/predict`, `/rerank`.

Shapes and statuses of TEI (router/src/http/server.rs).
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flask import Blueprint, Response, request

from container.errors import InvalidParameter
from container.frontend.apis.tei.schemas import (
    EmbedAllRequest,
    EmbedRequest,
    PredictRequest,
    RerankRequest,
    SimilarityRequest,
)
from container.frontend.apis.text_dialect import TextDialect
from container.frontend.apis.text_inputs import TextBody, as_inputs
from container.frontend.embedding.vectors import cosines
from container.frontend.generation.offloading import in_pieces
from container.frontend.generation.request_context import RequestContext
from container.frontend.web.error_responses import Dialect, errors_in
from container.frontend.web.http_request import request_context
from container.frontend.web.request_body import parse, read_object
from container.frontend.web.responses import written


class TeiDialect(TextDialect):
    """Answers TEI's bodies; `/invocations` uses it too."""

    def embed(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Answer one vector for each input."""
        started = time.monotonic()
        tei_request = parse(EmbedRequest, body)
        rows = self._embeddings.vectors(
            as_inputs(tei_request.inputs),
            tei_request.options("inputs"),
            self._on_wait(context),
            dimensions=tei_request.dimensions,
            normalize=True if tei_request.normalize is None else tei_request.normalize,
        )
        vectors = [written(vector.tolist()) for vector in in_pieces(rows.values)]
        return self._respond(vectors, started, _tokens(rows.num_tokens))

    def embed_all(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Answer one vector for each token of each input."""
        started = time.monotonic()
        tei_request = parse(EmbedAllRequest, body)
        rows = self._embeddings.token_vectors(
            as_inputs(tei_request.inputs), tei_request.options("inputs"), self._on_wait(context)
        )
        return self._respond(
            [values.tolist() for values in rows.values], started, _tokens(rows.num_tokens)
        )

    def embed_sparse(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Answer the terms of each input, with their weights."""
        started = time.monotonic()
        tei_request = parse(EmbedAllRequest, body)
        rows = self._embeddings.terms(
            as_inputs(tei_request.inputs), tei_request.options("inputs"), self._on_wait(context)
        )
        answer = [
            [{"index": int(index), "value": value} for index, value in values.tolist()]
            for values in rows.values
        ]
        return self._respond(answer, started, _tokens(rows.num_tokens))

    def similarity(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Answer the cosine of each sentence with the source sentence."""
        started = time.monotonic()
        tei_request = parse(SimilarityRequest, body)
        options = (tei_request.parameters or TextBody()).options("inputs.sentences")
        sentences = tei_request.inputs.sentences
        _require_texts(sentences, "inputs.sentences")
        inputs = [tei_request.inputs.source_sentence, *sentences]
        rows = self._embeddings.vectors([*inputs], options, self._on_wait(context), normalize=True)
        answer = cosines(rows.values[0], rows.values[1:]).tolist()
        return self._respond(answer, started, _tokens(rows.num_tokens))

    def predict(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Answer each label with its score, the likeliest first."""
        started = time.monotonic()
        tei_request = parse(PredictRequest, body)
        rows = self._embeddings.scores(
            tei_request.pairs(),
            tei_request.options("inputs"),
            self._on_wait(context),
            raw=tei_request.raw_scores,
            allowed=("classifier", "reranker"),
        )
        labels = rows.info.labels
        predictions = [_predictions(row, labels) for row in rows.values.tolist()]
        answer = predictions if tei_request.is_batch else predictions[0]
        return self._respond(answer, started, _tokens(rows.num_tokens))

    def rerank(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Answer the texts' indices and scores, the best first."""
        started = time.monotonic()
        tei_request = parse(RerankRequest, body)
        texts = tei_request.texts
        options = replace(tei_request.options("texts"), query_field="query")
        _require_texts(texts, "texts")
        ranking = self._rank(tei_request.query, texts, options, context, raw=tei_request.raw_scores)
        answer = [
            {"index": index, "score": score}
            | ({"text": texts[index]} if tei_request.return_text else {})
            for index, score in ranking.scores
        ]
        return self._respond(answer, started, _tokens(ranking.num_tokens))

    def by_kind(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Answer as TEI's `/` and `/invocations` do: the kind of the model decides."""
        with errors_in(Dialect.TEI):
            if isinstance(body.get("inputs"), dict):
                return self.similarity(body, context)
            answer_by_kind = {
                "embedding": self.embed,
                "sparse": self.embed_sparse,
                "reranker": self.rerank,
                "classifier": self.predict,
                "late_interaction": self.rerank if "texts" in body else self.embed_all,
            }
            return answer_by_kind[self._embeddings.info.kind](body, context)


Answer = Callable[[dict[str, Any], RequestContext], Response]


def blueprint(dialect: TeiDialect, rank_documents: Answer, *, owns_root: bool) -> Blueprint:
    """Make the routes; `/` is TEI's where no language model is served.

    `rank_documents` answers a body of `/rerank` with `documents`: Cohere's and vLLM's.
    """
    routes = Blueprint("tei", __name__)
    if owns_root:
        routes.post("/")(lambda: dialect.by_kind(read_object(request), request_context()))

    @routes.post("/embed")
    def embed() -> Response:
        return dialect.embed(read_object(request), request_context())

    @routes.post("/embed_all")
    def embed_all() -> Response:
        return dialect.embed_all(read_object(request), request_context())

    @routes.post("/embed_sparse")
    def embed_sparse() -> Response:
        return dialect.embed_sparse(read_object(request), request_context())

    @routes.post("/similarity")
    def similarity() -> Response:
        return dialect.similarity(read_object(request), request_context())

    @routes.post("/predict")
    def predict() -> Response:
        return dialect.predict(read_object(request), request_context())

    @routes.post("/rerank")
    def rerank() -> Response:
        body = read_object(request)
        if "texts" not in body and "documents" in body:
            with errors_in(Dialect.OPENAI):
                return rank_documents(body, request_context())
        return dialect.rerank(body, request_context())

    return routes


def _tokens(num_tokens: int) -> dict[str, str]:
    """Return TEI's header with the number of tokens."""
    return {"x-compute-tokens": str(num_tokens)}


def _predictions(scores: list[float], labels: list[str]) -> list[dict[str, Any]]:
    predictions = [
        {"score": score, "label": label} for score, label in zip(scores, labels, strict=True)
    ]
    return sorted(predictions, key=lambda prediction: -float(prediction["score"]))


def _require_texts(texts: list[str], field: str) -> None:
    if not texts:
        raise InvalidParameter(f"`{field}` must not be empty", field=field)
