"""The part of the text routes that OpenAI's, TEI's and vLLM's APIs share."""

import time
from collections.abc import Callable
from typing import NamedTuple

from flask import Response

from container.frontend.embedding.service import Embeddings, TextOptions
from container.frontend.generation.request_context import RequestContext
from container.frontend.observability.metrics import Metrics
from container.frontend.web.responses import json_response, watch_wait
from container.messages.embedder import EmbedderInfo, Pair


class Ranking(NamedTuple):
    """The index and score of each text, the best first, and the tokens of all inputs."""

    scores: list[tuple[int, float]]
    num_tokens: int
    info: EmbedderInfo


class TextDialect:
    """Answers the bodies of one API with vectors and scores."""

    def __init__(self, embeddings: Embeddings, metrics: Metrics) -> None:
        self._embeddings = embeddings
        self._metrics = metrics

    def _rank(
        self,
        query: str,
        texts: list[str],
        options: TextOptions,
        context: RequestContext,
        *,
        raw: bool,
    ) -> Ranking:
        """Score each text for a query; `raw` scores are logits, others probabilities."""
        pairs = [Pair(query, text) for text in texts]
        rows = self._embeddings.pair_scores(pairs, options, self._on_wait(context), raw=raw)
        scores = enumerate(rows.values[:, 0].tolist())
        return Ranking(sorted(scores, key=lambda item: -item[1]), rows.num_tokens, rows.info)

    def _respond(
        self, answer: object, started: float, headers: dict[str, str] | None = None
    ) -> Response:
        """Send an answer and count the request, which began at `started` (time.monotonic())."""
        self._metrics.observe_duration(time.monotonic() - started)
        return json_response(answer, headers=headers)

    def _on_wait(self, context: RequestContext) -> Callable[[], None]:
        """Return a function that raises if the client has disconnected or the time is up."""
        return watch_wait(context)
