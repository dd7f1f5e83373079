"""COMPILE=1: torch.compile's layers say the same, or the start says why they cannot."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from container.engine.engine import Engine
from container.errors import ConfigError
from container.messages.engine import SamplingParams
from container.model.attention import paged
from container.model.execution.factory import make_runner
from container.model.loading.config import read_config
from container.model.loading.weights import load_weights
from container.model.optimize import compiling
from container.model.parallel.placement import Placement
from container.settings.model import ModelSettings
from container.settings.settings import Settings
from tests.support.engines import Job, engine_config, ids, run
from tests.support.models import tiny_models
from tests.support.models.prepared import prepare

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _attention_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    yield
    ALL_ATTENTION_FUNCTIONS.register(paged.NAME, paged.paged_attention)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch uses what it deprecates
@pytest.mark.parametrize("name", ["llama_short", "gemma3_short"])
def test_compiled_layers_give_the_same_tokens(name: str, tmp_path: Path) -> None:
    model = prepare(tiny_models.make(name), torch.float32, CPU, compiles=True)
    assert list((tmp_path / "compiled").rglob("*.so")), "nothing was compiled"
    config = engine_config()
    engine = Engine(make_runner(model, config, end_token_ids=frozenset()), config, end_token_ids=())
    rnd = random.Random(1)
    jobs = []
    for _ in range(8):
        prompt = [rnd.randrange(2, tiny_models.VOCABULARY) for _ in range(rnd.randint(1, 50))]
        jobs.append(Job(prompt, SamplingParams(rnd.randint(1, 30)), rnd.randrange(20)))
    got = run(engine, jobs)
    for index, job in enumerate(jobs):
        expected = tiny_models.reference(name, tuple(job.prompt), job.params.max_new_tokens)
        assert ids(got[index]) == expected


def test_without_a_compiler_the_start_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "COMPILERS", ("no-such-compiler",))
    with pytest.raises(ConfigError, match="COMPILE=1 needs a C"):
        prepare(tiny_models.make("llama"), torch.float32, CPU, compiles=True)


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch.nn.Module, "compile", fail)
    with pytest.raises(ConfigError, match="COMPILE=1 cannot work here: RuntimeError: Failed to fi"):
        prepare(tiny_models.make("llama"), torch.float32, CPU, compiles=True)


def test_models_that_cannot_be_compiled_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"COMPILE=1 cannot work here, since .* not paged"):
        prepare(tiny_models.make("t5"), torch.float32, CPU, compiles=True)
    tiny_models.make("llama").save_pretrained(tmp_path)
    settings = Settings(model=ModelSettings(model_id=str(tmp_path), compile=True))
    config = read_config(settings.model, tmp_path)
    split = Placement((CPU, CPU))
    with pytest.raises(ConfigError, match="COMPILE=1 needs a model on one device"):
        load_weights(settings.model, tmp_path, config, torch.float32, split)
