"""Answers of an embedder that drains, or has left, before they are rendered."""

import numpy as np
import pytest
from flask.testing import FlaskClient

from container.errors import Unavailable
from container.frontend.app import AppContext, create_app
from container.frontend.clients.engine_client import NoEngine
from container.frontend.generation.service import Service
from container.frontend.options import Options
from container.messages.embedder import (
    Embed,
    Embedded,
    EmbedderInfo,
    EmbedderKind,
    EmbedderStatus,
)
from container.settings.settings import Settings
from tests.support import connections


class LeavingEmbedder:
    """Implements EmbedderConnection and PendingRows: leaves with its first answer."""

    def __init__(self, kind: EmbedderKind) -> None:
        labels = ["a", "b"] if kind == "classifier" else ["score"]
        self.info = EmbedderInfo(
            "m", None, "bert", kind, "float32", "cpu", len(labels), 64, 100, False, labels, []
        )
        self.num_inputs = 0
        self.has_left = False

    @property
    def status(self) -> EmbedderStatus:
        if self.has_left:
            raise Unavailable("the server is shutting down")
        return EmbedderStatus("ready", "ready", self.info)

    def submit(self, embed: Embed) -> "LeavingEmbedder":
        self.num_inputs = len(embed.inputs)
        return self

    def wait(self, timeout_s: float) -> Embedded:
        self.has_left = True
        rows = np.ones((self.num_inputs, self.info.width), np.float32)
        return Embedded(1, rows.tobytes(), self.info.width, 3)

    def close(self) -> None:
        """Nothing is left open."""


def _client(kind: EmbedderKind) -> FlaskClient:
    service = Service(NoEngine(), connections.NoEngine.tokenizer)
    options = Options.from_settings(Settings())
    return create_app(AppContext(service, options, embedder=LeavingEmbedder(kind))).test_client()


SIMILAR = {"inputs": {"source_sentence": "a", "sentences": ["b"]}}
PAIR = {"query": "a", "texts": ["b"]}


@pytest.mark.parametrize(
    ("kind", "path", "body"),
    [
        ("embedding", "/embed", {"inputs": "a"}),
        ("embedding", "/similarity", SIMILAR),
        ("embedding", "/v1/embeddings", {"input": "a"}),
        ("embedding", "/invocations", {"inputs": "a"}),
        ("embedding", "/invocations", SIMILAR),
        ("reranker", "/rerank", PAIR),
        ("reranker", "/v1/rerank", {"query": "a", "documents": ["b"]}),
        ("reranker", "/rerank", {"query": "a", "documents": ["b"]}),
        ("late_interaction", "/rerank", PAIR),
        ("late_interaction", "/embed_all", {"inputs": "a"}),
        ("classifier", "/predict", {"inputs": "a"}),
    ],
)
def test_rendering_needs_nothing_but_the_rows(kind: EmbedderKind, path: str, body: dict) -> None:
    client = _client(kind)
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert client.post(path, json=body).status_code == 503
