"""Stretched rotary positions: the same tokens as transformers' own linear scaling."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

from container.errors import ConfigError
from container.messages.engine import SamplingParams
from container.model.engine_loader import load_engine
from container.model.hf_config import stretch
from container.settings.settings import Settings
from tests.support.engines import Job, ids, run
from tests.support.servers import DEMO_MODEL

PROMPT = list(range(300, 420))


def _reference(factor: float, count: int) -> list[int]:
    """Return transformers' greedy tokens with the factor in its configuration."""
    config = AutoConfig.from_pretrained(DEMO_MODEL)
    rope = config.rope_parameters | {"rope_type": "linear", "factor": factor}
    config.rope_parameters = rope
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, config=config, dtype=torch.float32)
    out = model.eval().generate(
        torch.tensor([PROMPT]), max_new_tokens=count, do_sample=False, eos_token_id=None
    )
    return out[0, len(PROMPT) :].tolist()


def _served(factor: str, count: int) -> tuple[list[int], int]:
    """Return the engine's tokens, and the length of its longest sequence."""
    settings = Settings.from_environ(
        {"HF_MODEL_ID": str(DEMO_MODEL), "DTYPE": "float32", "ROPE_FACTOR": factor}
        | {"MAX_BATCH_TOTAL_TOKENS": "8192", "SM_NUM_GPUS": "0"}
    )
    engine, info = load_engine(settings, lambda detail: None)
    params = SamplingParams(max_new_tokens=count, ignore_eos=True)
    return ids(run(engine, [Job(PROMPT, params)])[0]), info.max_total_tokens


def test_a_stretched_model_generates_what_transformers_does() -> None:
    tokens, longest = _served("2", 12)
    assert tokens == _reference(2.0, 12)
    assert longest == 4096
    assert tokens != _reference(1.0, 12)


def test_a_model_without_rotary_positions_is_refused() -> None:
    with pytest.raises(ConfigError, match="ROPE_SCALING cannot be used with a gpt2"):
        stretch(GPT2Config(), 2.0)


def test_a_model_that_is_stretched_already_is_refused(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(DEMO_MODEL)
    config.rope_parameters = config.rope_parameters | {"rope_type": "yarn", "factor": 2.0}
    with pytest.raises(ConfigError, match="'yarn'"):
        stretch(config, 2.0)
