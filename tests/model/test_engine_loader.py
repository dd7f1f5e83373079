"""Whole folders through the loader, as the engine process loads them."""

import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from container.errors import ModelLoadError
from container.messages.engine import SamplingParams
from container.model.engine_loader import load_engine
from container.settings.engine import MemorySettings
from container.settings.model import ModelSettings
from container.settings.settings import Settings
from tests.support.engines import Job, ids, run
from tests.support.models import tiny_models
from tests.support.models.broken import broken_model
from tests.support.servers import DEMO_MODEL


@pytest.mark.parametrize(
    ("name", "attention"), [("llama", "paged"), ("bloom", "paged"), ("t5", "own")]
)
def test_a_saved_model_is_served_the_way_that_it_needs(
    name: str, attention: str, tmp_path: Path
) -> None:
    model = tiny_models.make(name)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(DEMO_MODEL).save_pretrained(tmp_path)
    settings = Settings(
        model=ModelSettings(model_id=str(tmp_path), dtype="float32"),
        memory=MemorySettings(max_batch_total_tokens=4096),
    )
    engine, info = load_engine(settings, progress=lambda _: None)
    assert info.attention == attention
    prompt = [5, 6, 7, 8]
    got = ids(run(engine, [Job(prompt, SamplingParams(12, ignore_eos=True))])[0])
    assert got == tiny_models.reference(name, tuple(prompt), 12)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"without": "config.json"}, "config.json is missing"),
        ({"without": "model.safetensors"}, "weights are missing"),
        ({"without": "tokenizer.json"}, "tokenizer is missing"),
        ({"write": ("config.json", "{")}, "not valid JSON"),
        ({"write": ("config.json", "[]")}, "not a JSON object"),
        ({"write": ("config.json", '{"model_type": "bert"}')}, "does not generate text"),
        ({"write": ("config.json", '{"model_type": "no_such_model"}')}, "no_such_model"),
        ({"write": ("model.safetensors", "x" * 100)}, "cannot be loaded"),
        ({"write": ("tokenizer.json", "{")}, "tokenizer cannot be loaded"),
        ({"write": ("generation_config.json", "{")}, "generation_config.json cannot be used"),
        (
            {"write": ("generation_config.json", '{"eos_token_id": ["a", -5]}')},
            "generation_config.json",
        ),
        (
            {"write": ("generation_config.json", '{"eos_token_id": "</s>"}')},
            "generation_config.json",
        ),
        ({"write": ("generation_config.json", '{"eos_token_id": 2.5}')}, "eos_token_id"),
        (
            {"write": ("generation_config.json", '{"eos_token_id": {"a": 1}}')},
            "generation_config.json",
        ),
        ({"num_hidden_layers": 8}, "the weights lack"),
        ({"intermediate_size": 100}, "cannot be loaded"),
        ({"num_attention_heads": 0}, "config.json cannot be used: ZeroDivisionError"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_unusable_model_is_refused_with_the_reason(
    tmp_path: Path, change: dict, expected: str
) -> None:
    folder = broken_model(tmp_path / "model", **change)
    settings = Settings(
        model=ModelSettings(model_id=str(folder), dtype="float32"),
        memory=MemorySettings(max_batch_total_tokens=4096),
    )
    with pytest.raises(ModelLoadError, match=re.escape(expected)):
        load_engine(settings, progress=lambda _: None)


def test_weights_without_a_place_in_the_model_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = broken_model(tmp_path / "model", num_hidden_layers=1)
    settings = Settings(
        model=ModelSettings(model_id=str(folder), dtype="float32"),
        memory=MemorySettings(max_batch_total_tokens=4096),
    )
    load_engine(settings, progress=lambda _: None)
    assert "layers.1." in caplog.text
    assert "config.json" in caplog.text
