"""HF_TASK: named or inferred, and pipelines whose batches answer as each alone would."""

import json
import threading
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

from container.errors import ConfigError
from container.handlers.tasks.micro_batcher import MicroBatcher
from container.handlers.tasks.pipelines import load_pipeline
from container.handlers.tasks.question_answering import QuestionAnswering
from container.handlers.tasks.selection import needs_engine, served_task
from container.settings.model import ModelSettings
from tests.support.models import encoders
from tests.support.servers import DEMO_MODEL

TEXTS = ["the cat sat on the mat", "a dog", "the red fish likes the blue cat", "who is in paris"]
KINDS = {
    "text-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "fill-mask": AutoModelForMaskedLM,
}


@pytest.mark.parametrize(
    ("task_name", "task"),
    [
        ("text-classification", "text-classification"),
        ("Sentiment-Analysis", "text-classification"),
        ("ner", "token-classification"),
        ("summarisation", "summarization"),
        ("translation_en_to_de", "translation"),
        ("text-generation", None),
        ("feature-extraction", None),
    ],
)
def test_tasks_by_name(task_name: str, task: str | None) -> None:
    assert served_task(ModelSettings(model_id=str(DEMO_MODEL), task=task_name)) == task


def test_an_unknown_task_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean text-classification"):
        served_task(ModelSettings(task="text-clasification"))
    with pytest.raises(ConfigError, match="known are"):
        served_task(ModelSettings(task="xxxxxxxxx"))


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertForSequenceClassification", "text-classification"),
        ("DistilBertForQuestionAnswering", "question-answering"),
        ("RobertaForMaskedLM", "fill-mask"),
        ("ViTForImageClassification", "image-classification"),
        ("LlamaForCausalLM", None),
        ("T5ForConditionalGeneration", None),
    ],
)
def test_tasks_by_the_models_config(tmp_path: Path, architecture: str, task: str | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    assert served_task(ModelSettings(model_id=str(tmp_path))) == task
    assert needs_engine(task) == (task is None)


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


def test_a_bad_call_in_a_batch_fails_alone() -> None:
    sizes: list[int] = []
    is_first_in, may_go = threading.Event(), threading.Event()

    def run(inputs: list, parameters: dict) -> list:
        sizes.append(len(inputs))
        is_first_in.set()
        may_go.wait(20)
        return [10 // one + parameters.get("add", 0) for one in inputs]

    batcher = MicroBatcher(run)
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(batcher.call, 1, {})
        is_first_in.wait(20)
        later = [threads.submit(batcher.call, number, {}) for number in (1, 2, 0, 5)]
        other = threads.submit(batcher.call, 5, {"add": 1})
        while batcher._calls.qsize() < 5:
            pass
        may_go.set()
        assert first.result(20) == 10
        assert [one.result(20) for one in (later[0], later[1], later[3])] == [10, 5, 2]
        with pytest.raises(ZeroDivisionError):
            later[2].result(20)
        assert other.result(20) == 3
    assert sorted(sizes) == [1, 1, 1, 1, 1, 1, 4]
