"""HF_TASK: named or inferred, and pipelines whose batches answer as each alone would."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from container.errors import ConfigError
from container.handlers.tasks.micro_batcher import MicroBatcher
from container.handlers.tasks.selection import needs_engine, served_task
from container.settings.model import ModelSettings
from tests.support.servers import DEMO_MODEL


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
