"""Whole folders through the loader, as the engine process loads them."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from container.messages.engine import SamplingParams
from container.model.engine_loader import load_engine
from container.settings.engine import MemorySettings
from container.settings.model import ModelSettings
from container.settings.settings import Settings
from tests.support.engines import Job, ids, run
from tests.support.models import tiny_models
from tests.support.servers import DEMO_MODEL


@pytest.mark.parametrize(
    ("name", "attention"), [("llama", "paged"), ("bloom", "own"), ("t5", "own")]
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
