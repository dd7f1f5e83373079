"""Whole folders through the loader, as the engine process loads them."""

import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from container.errors import ModelLoadError
from container.messages.engine import SamplingParams
from container.model.engine_loader import load_engine
from container.model.loading.checkpoint import find_model
from container.settings.engine import MemorySettings
from container.settings.model import ModelSettings
from container.settings.settings import Settings
from tests.support.engines import Job, ids, run
from tests.support.models import tiny_models
from tests.support.models.broken import broken_model
from tests.support.servers import DEMO_MODEL


@pytest.mark.parametrize(
    ("name", "attention"),
    [("llama", "paged"), ("bloom", "paged"), ("t5", "paged"), ("bart", "paged"), ("mvp", "own")],
)
def test_saved_models_get_the_right_runner(name: str, attention: str, tmp_path: Path) -> None:
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
        ({"num_hidden_layers": 1_000_000}, "fewer than one for each layer"),
        ({"text_config": {"num_hidden_layers": 1_000_000}}, "text_config.num_hidden_layers is 1"),
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


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 0}, {"num_hidden_layers": -1}, {"num_hidden_layers": "2"},
        {"num_attention_heads": 0}, {"num_attention_heads": -2}, {"num_key_value_heads": 0},
        {"head_dim": 0}, {"hidden_size": 0}, {"hidden_size": -64}, {"vocab_size": 0},
        {"vocab_size": 10**12}, {"max_position_embeddings": -1}, {"max_position_embeddings": 0},
        {"max_position_embeddings": 10**12}, {"max_position_embeddings": 1e12},
        {"rope_theta": 0}, {"rope_parameters": {"rope_theta": -1.0, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 0}},
    ],
    ids=str,
)  # fmt: skip
def test_sizes_that_no_model_has_are_refused_by_their_names(tmp_path: Path, change: dict) -> None:
    folder = broken_model(tmp_path / "model", **change)
    name = next(iter(change))
    with pytest.raises(ModelLoadError, match=rf"config\.json cannot be used: {name}"):
        find_model(str(folder), revision=None, token=None)


def test_unexpected_weights_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = broken_model(tmp_path / "model", num_hidden_layers=1)
    settings = Settings(
        model=ModelSettings(model_id=str(folder), dtype="float32"),
        memory=MemorySettings(max_batch_total_tokens=4096),
    )
    load_engine(settings, progress=lambda _: None)
    assert "layers.1." in caplog.text
    assert "config.json" in caplog.text
