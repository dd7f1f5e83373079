"""The settings of the embedding model, each with a server of its own."""

import os
from pathlib import Path

import numpy as np
import requests

from tests.support.models import embedders
from tests.support.models.embedders import MINILM
from tests.support.servers import serving, wait_for
from tests.support.services.hub import hub

LONG = "bread " * 300


def test_small_batches_give_the_same_vectors(tmp_path: Path) -> None:
    settings = {"EMBEDDING_MODEL_ID": os.fspath(MINILM), "AUTO_TRUNCATE": "true"}
    texts = [f"Sentence number {index} of a few." for index in range(20)]
    with serving(tmp_path / "log", "", **settings, MAX_BATCH_TOKENS="16") as server:
        url = f"{server.url}/embed"
        cut = requests.post(url, json={"inputs": LONG}, timeout=60)
        assert cut.ok, cut.text
        expected = embedders.minilm().encode([LONG, *texts])
        assert np.dot(cut.json()[0], expected[0]) > 0.9999
        refused = requests.post(url, json={"inputs": LONG, "truncate": False}, timeout=60)
        assert refused.status_code == 413
        rows = requests.post(url, json={"inputs": texts}, timeout=60).json()
        assert (np.array(rows, np.float32) * expected[1:]).sum(1).min() > 0.9999
        # Each text has more than eight tokens, so no two fit a batch.
        wait_for(lambda: server.metric("embedder_batches_total") > len(texts), 5)


def test_a_revision_of_the_embedding_model_is_downloaded(tmp_path: Path) -> None:
    with hub(MINILM, "org/embedder") as server:
        settings = {
            "EMBEDDING_MODEL_ID": "org/embedder",
            "EMBEDDING_MODEL_REVISION": "v2.1",
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        }
        with serving(tmp_path / "log", "", **settings) as running:
            row = requests.post(f"{running.url}/embed", json={"inputs": "Hello"}, timeout=60).json()
        assert np.dot(row[0], embedders.minilm().encode(["Hello"])[0]) > 0.9999
        assert any("/v2.1" in path for path in server.asked)
        assert not any("/main" in path for path in server.asked)
