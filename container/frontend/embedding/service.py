"""Embeds, scores and ranks texts with the embedding or rerank model. No HTTP, no API."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from container.errors import InvalidParameter, NotFound, Unavailable
from container.frontend.clients.embedder_client import EmbedderConnection
from container.frontend.embedding.rows import Rows, TokenRows, rows_of, token_rows_of
from container.frontend.embedding.vectors import max_similarity, normalized, probabilities
from container.frontend.generation.offloading import in_pieces
from container.messages.embedder import (
    Embed,
    Embedded,
    EmbedderInfo,
    EmbedderKind,
    EmbedderLoad,
    EmbedInput,
    Pair,
    Truncation,
)

# How often `on_wait` is called while the embedder works.
DISCONNECT_POLL_S = 0.5
NO_EMBEDDER = NotFound(
    "this server has no embedding model: set EMBEDDING_MODEL_ID to a Hub id or folder"
)


@dataclass(frozen=True, slots=True)
class TextOptions:
    """The options of a request's texts: `field` is their name in errors, `query_field` of queries.

    `max_tokens` is the length of a text at which truncation sets in, `max_query_tokens` and
    `max_document_tokens` cut queries and documents; 0 is the model's own limit.
    """

    field: str
    prompt_name: str | None = None
    truncate: bool | None = None
    side: Truncation = Truncation.RIGHT
    max_tokens: int = 0
    max_query_tokens: int = 0
    max_document_tokens: int = 0
    query_field: str = ""


class Embeddings:
    """Sends texts to the embedder and finishes its rows.

    The methods call `on_wait` twice a second while they wait; it may raise to give up.
    """

    def __init__(
        self, embedder: EmbedderConnection | None, *, max_inputs: int, auto_truncate: bool
    ) -> None:
        self._embedder = embedder
        self._max_inputs = max_inputs
        self._auto_truncate = auto_truncate
        self.started_at = time.time()

    @property
    def is_offered(self) -> bool:
        """Whether there is an embedder at all."""
        return self._embedder is not None

    @property
    def info(self) -> EmbedderInfo:
        """The loaded model. Raises Unavailable before it is loaded, NotFound if there is none."""
        return self._ready()[1]

    @property
    def fallbacks(self) -> list[str]:
        """The reasons why the model is slower than possible; none before it is loaded."""
        info = None if self._embedder is None else self._embedder.status.info
        return [] if info is None else info.fallbacks

    @property
    def not_proved(self) -> list[str]:
        """The parts that the checks at start left out; none before the model is loaded."""
        info = None if self._embedder is None else self._embedder.status.info
        return [] if info is None else info.not_proved

    @property
    def load(self) -> EmbedderLoad:
        """The load of the embedder. Raises Unavailable or NotFound."""
        if self._embedder is None:
            raise NO_EMBEDDER
        return self._embedder.status.load

    def models(self) -> list[dict[str, Any]]:
        """Return the model as an entry of OpenAI's list of models."""
        model_id = self.info.model_id
        card = {"object": "model", "created": int(self.started_at), "owned_by": model_id}
        return [{"id": model_id} | card]

    def check_ready(self) -> None:
        """Raise Unavailable unless a request could be served now."""
        self._ready()

    def vectors(
        self,
        inputs: list[EmbedInput],
        options: TextOptions,
        on_wait: Callable[[], None],
        *,
        dimensions: int | None = None,
        normalize: bool | None = None,
        num_queries: int = 0,
    ) -> Rows:
        """Embed inputs; truncate vectors to `dimensions` and normalise them.

        `normalize` None: as the model's own configuration does. The first `num_queries` inputs are
        queries, as far as the options cut those differently.
        """
        info = self._require("embedding")
        if dimensions is not None and not 1 <= dimensions <= info.width:
            raise InvalidParameter(
                f"`dimensions` must be from 1 to {info.width}, the model's. Given: {dimensions}",
                field="dimensions",
            )
        rows = self._rows(inputs, options, on_wait, num_queries=num_queries)
        values = rows.values[:, :dimensions]
        if info.is_normalized if normalize is None else normalize:
            values = normalized(values)
        return replace(rows, values=values)

    def token_vectors(
        self, inputs: list[EmbedInput], options: TextOptions, on_wait: Callable[[], None]
    ) -> TokenRows:
        """Return the vectors of each input's tokens, special ones included, before pooling.

        Those of a late-interaction model are what its scores are computed from; its prompt `query`
        makes the inputs queries, else they are documents.
        """
        info = self._require("embedding", "late_interaction")
        is_late = info.kind == "late_interaction"
        num_queries = len(inputs) if is_late and options.prompt_name == "query" else 0
        answer, info = self._request(
            inputs, options, on_wait, per_token=True, num_queries=num_queries
        )
        rows = token_rows_of(answer, info, len(inputs))
        if is_late and info.is_normalized:
            return replace(rows, values=[normalized(values) for values in rows.values])
        return rows

    def pair_scores(
        self, pairs: list[Pair], options: TextOptions, on_wait: Callable[[], None], *, raw: bool
    ) -> Rows:
        """Score a query and a document: [pairs, 1].

        A reranker's scores are probabilities, or logits if `raw`; those of a late-interaction model
        are sums of cosines in any case.
        """
        info = self._require("reranker", "late_interaction")
        if info.kind == "reranker":
            return self.scores([*pairs], options, on_wait, raw=raw)
        if options.prompt_name is not None:
            raise InvalidParameter(
                "`prompt_name` cannot be chosen for a late-interaction model, which has a prompt "
                "for queries and one for documents",
                field="prompt_name",
            )
        queries = [*dict.fromkeys(pair.first for pair in pairs)]
        documents = [*dict.fromkeys(pair.second for pair in pairs)]
        answer, info = self._request(
            [*queries, *documents], options, on_wait, per_token=True, num_queries=len(queries)
        )
        rows = token_rows_of(answer, info, len(queries) + len(documents))
        vectors = [normalized(v) if info.is_normalized else v for v in rows.values]
        by_query = dict(zip(queries, vectors, strict=False))
        by_document = dict(zip(documents, vectors[len(queries) :], strict=True))
        scores = [
            max_similarity(
                by_query[pair.first], by_document[pair.second], is_mean=info.is_mean_similarity
            )
            for pair in in_pieces(pairs)
        ]
        return Rows(np.array(scores, np.float32)[:, None], rows.num_tokens, info)

    def terms(
        self, inputs: list[EmbedInput], options: TextOptions, on_wait: Callable[[], None]
    ) -> TokenRows:
        """Return the terms of each input: [terms, 2], a token id and its weight."""
        self._require("sparse")
        answer, info = self._request(inputs, options, on_wait, per_token=False)
        return token_rows_of(answer, info, len(inputs))

    def scores(
        self,
        inputs: list[EmbedInput],
        options: TextOptions,
        on_wait: Callable[[], None],
        *,
        raw: bool,
        allowed: tuple[EmbedderKind, ...] = ("reranker",),
    ) -> Rows:
        """Score inputs: as probabilities, or logits if `raw`."""
        self._require(*allowed)
        rows = self._rows(inputs, options, on_wait)
        return rows if raw else replace(rows, values=probabilities(rows.values))

    def _rows(
        self,
        inputs: list[EmbedInput],
        options: TextOptions,
        on_wait: Callable[[], None],
        *,
        num_queries: int = 0,
    ) -> Rows:
        answer, info = self._request(
            inputs, options, on_wait, per_token=False, num_queries=num_queries
        )
        return rows_of(answer, info)

    def _request(
        self,
        inputs: list[EmbedInput],
        options: TextOptions,
        on_wait: Callable[[], None],
        *,
        per_token: bool,
        num_queries: int = 0,
    ) -> tuple[Embedded, EmbedderInfo]:
        """Send inputs to the embedder and wait; return its rows and its model."""
        embedder, info = self._ready()
        self._check_count(len(inputs) - num_queries, options.field)
        self._check_count(num_queries, options.query_field or options.field)
        cuts = self._auto_truncate if options.truncate is None else options.truncate
        pending = embedder.submit(
            Embed(
                0,
                inputs,
                options.field,
                options.prompt_name,
                options.side if cuts else Truncation.REFUSE,
                per_token,
                num_queries,
                options.max_tokens,
                options.max_query_tokens,
                options.max_document_tokens,
                options.query_field,
            )
        )
        try:
            while (answer := pending.wait(DISCONNECT_POLL_S)) is None:
                on_wait()
        finally:
            pending.close()
        return answer, info

    def _check_count(self, count: int, field: str) -> None:
        if count > self._max_inputs:
            raise InvalidParameter(
                f"`{field}` must have at most {self._max_inputs} texts (MAX_EMBEDDING_INPUTS). "
                f"Given: {count}",
                field=field,
            )

    def _require(self, *allowed: EmbedderKind) -> EmbedderInfo:
        info = self.info
        if info.kind not in allowed:
            raise NotFound(
                f"the served {info.kind} model {info.model_id} does not answer this route, which "
                f"needs a model of kind {' or '.join(allowed)}"
            )
        return info

    def _ready(self) -> tuple[EmbedderConnection, EmbedderInfo]:
        if self._embedder is None:
            raise NO_EMBEDDER
        status = self._embedder.status
        if status.state == "draining":
            raise Unavailable(status.detail, retry_after_s=30)
        if status.info is None or status.state == "loading":
            raise Unavailable(f"the embedding model is loading: {status.detail}", retry_after_s=5)
        return self._embedder, status.info
