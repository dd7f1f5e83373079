"""Pipelines of HF_TASK: batches answer as each input alone would."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    pipeline,
)

from container.handlers.tasks.pipelines import load_pipeline
from container.handlers.tasks.question_answering import QuestionAnswering
from tests.support.models import encoders

TEXTS = ["the cat sat on the mat", "a dog", "the red fish likes the blue cat", "who is in paris"]
KINDS = {
    "text-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "fill-mask": AutoModelForMaskedLM,
}


def _texts(task: str) -> list[str]:
    return [f"{text} [MASK]" for text in TEXTS] if task == "fill-mask" else TEXTS


@pytest.mark.parametrize("task", KINDS)
def test_batched_calls_answer_as_single_ones(tmp_path: Path, task: str) -> None:
    folder = encoders.save(tmp_path, KINDS[task])
    model = load_pipeline(task, folder, gpu_id=None, trust_remote_code=False)
    alone = pipeline(task, model=str(folder))
    expected = [alone(text) for text in _texts(task)] * 4
    with ThreadPoolExecutor(16) as threads:
        output = list(threads.map(model, _texts(task) * 4))
    _same(output, expected)
    _same(model(_texts(task)), alone(_texts(task)))
    if task == "text-classification":
        _same(model("a cat", top_k=2), alone("a cat", top_k=2))


def _same(output: object, expected: object) -> None:
    """Equal, but for how float32 sums round in a batch."""
    if isinstance(expected, dict):
        assert isinstance(output, dict)
        assert output.keys() == expected.keys()
        for key in expected:
            _same(output[key], expected[key])
    elif isinstance(expected, list):
        assert isinstance(output, list)
        assert len(output) == len(expected)
        for one, other in zip(output, expected, strict=True):
            _same(one, other)
    elif isinstance(expected, float) or hasattr(expected, "dtype"):
        assert output == pytest.approx(float(expected), abs=1e-4)
    else:
        assert output == expected


def test_zero_shot_takes_its_labels_as_parameters(tmp_path: Path) -> None:
    labels = {"id2label": {0: "contradiction", 1: "entailment"},
              "label2id": {"contradiction": 0, "entailment": 1}}  # fmt: skip
    folder = encoders.save(tmp_path, AutoModelForSequenceClassification, **labels)
    task = "zero-shot-classification"
    model = load_pipeline(task, folder, gpu_id=None, trust_remote_code=False)
    output = model("the cat sat", candidate_labels=["red", "blue"])
    assert sorted(output["labels"]) == ["blue", "red"]
    assert sum(output["scores"]) == pytest.approx(1.0)


def test_an_answer_is_the_likeliest_span_of_the_context(tmp_path: Path) -> None:
    folder = encoders.save(tmp_path, AutoModelForQuestionAnswering)
    model = QuestionAnswering(folder, torch.device("cpu"), trust_remote_code=False)
    asked = {"question": "where is the cat", "context": "the cat sat on the red mat in paris"}
    best, *others = model(asked, top_k=3)
    assert best == model(asked)
    assert asked["context"][best["start"] : best["end"]] == best["answer"]
    scores = [one["score"] for one in (best, *others)]
    assert scores == sorted(scores, reverse=True)
    long = asked | {"context": "the dog likes fish " * 20 + "who lives in london"}
    output = model(long)
    assert long["context"][output["start"] : output["end"]] == output["answer"]
    for wrong in ("text", {"question": "who"}, {"question": "who", "context": ""}):
        with pytest.raises(ValueError, match="question"):
            model(wrong)
