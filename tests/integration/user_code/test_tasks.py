"""HF_TASK over HTTP: pipelines in handler processes, and tasks that the engine generates."""

import json
import threading
from pathlib import Path

import requests
from transformers import AutoModelForSequenceClassification

from tests.support.aws import sagemaker_client as platform
from tests.support.models import encoders
from tests.support.servers import serving, spawn


def test_a_classifier_is_served_without_hf_task(tmp_path: Path) -> None:
    folder = encoders.save(tmp_path / "model", AutoModelForSequenceClassification)
    with serving(tmp_path / "log", folder) as server:
        url = f"{server.url}/invocations"
        one = requests.post(url, json={"inputs": "a cat"}, timeout=30).json()
        assert set(one[0]) == {"label", "score"}
        many = requests.post(url, json={"inputs": ["a cat", "the dog"]}, timeout=30).json()
        assert len(many) == 2
        both = {"inputs": "a cat", "parameters": {"top_k": 2}}
        assert len(requests.post(url, json=both, timeout=30).json()) == 2
        answers: list[list] = []
        threads = [
            threading.Thread(
                target=lambda: answers.append(
                    requests.post(url, json={"inputs": "a cat"}, timeout=30).json()
                )
            )
            for _ in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(answers) == 12
        assert all(abs(answer[0]["score"] - one[0]["score"]) < 1e-4 for answer in answers)
        for wrong in ({"inputs": 5}, {"inputs": "a", "parameters": 3}, {"a": {}}, 7):
            refused = requests.post(url, json=wrong, timeout=30)
            assert 400 <= refused.status_code < 500, refused.text
        long = requests.post(url, json={"inputs": "cat " * 60}, timeout=30)
        assert long.status_code == 422
        assert "at most 32" in long.json()["error"]
        cut = {"inputs": "cat " * 60, "parameters": {"truncation": True}}
        assert set(requests.post(url, json=cut, timeout=30).json()[0]) == {"label", "score"}
        lines = b'{"inputs": "a cat"}\n'
        records = platform.invoke(
            server.port, lines + b'{"inputs": "a dog", "parameters": {"top_k": 2}}\n',
            "application/jsonlines", accept="application/jsonlines",
        )  # fmt: skip
        first, second = map(json.loads, records.body.splitlines())
        assert first == one
        assert len(second) == 2
        csv = platform.invoke(
            server.port, b"inputs\na cat\nthe dog\n", "text/csv", accept="text/csv"
        )
        assert csv.body.decode().splitlines()[0] == "label,score"
        assert platform.invoke(server.port, lines, "application/zip").status == 415
        assert platform.invoke(server.port, lines, accept="image/png").status == 406


def test_a_generated_task_has_the_pipelines_form(tmp_path: Path) -> None:
    with serving(tmp_path / "log", HF_TASK="summarization") as server:
        body = {"inputs": ["Deep learning is", "Paris is"], "parameters": {"max_new_tokens": 5}}
        prediction = requests.post(f"{server.url}/invocations", json=body, timeout=60).json()
        assert [set(one) for one in prediction] == [{"summary_text"}] * 2
        wrong = body | {"parameters": {"max_new_tokens": -5}}
        refused = requests.post(f"{server.url}/invocations", json=wrong, timeout=60)
        assert refused.status_code == 422
        assert "max_new_tokens" in json.loads(refused.text)["error"]


def test_a_task_that_is_not_known_ends_the_start(tmp_path: Path) -> None:
    server = spawn(tmp_path / "log", HF_TASK="text-clasification")
    assert server.process.wait(120) == 2
    assert "did you mean text-classification" in server.log
