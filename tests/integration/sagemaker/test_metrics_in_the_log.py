"""Token metrics for CloudWatch in the log of a whole server."""

import json
from pathlib import Path

import requests

from tests.support.servers import serving


def test_a_server_that_ends_has_logged_its_metrics(tmp_path: Path) -> None:
    log, settings = tmp_path / "log", {"EMF_NAMESPACE": "LLM", "EMF_DIMENSIONS": "Stage=test"}
    with serving(log, **settings) as server:
        body = {"inputs": "What is", "parameters": {"max_new_tokens": 3}}
        for _ in range(2):
            assert requests.post(f"{server.url}/generate", json=body, timeout=60).ok
        assert server.stop() == 0
    [line] = [json.loads(text) for text in log.read_text().splitlines() if '"_aws"' in text]
    assert line["Stage"] == "test"
    assert line["GeneratedTokens"] == [3, 3]
    assert line["PromptTokens"][0] > 0
    assert all(0 < first <= whole for first, whole in
               zip(line["TimeToFirstToken"], line["RequestTime"], strict=True))  # fmt: skip
