"""KV_CACHE_DTYPE: a cache of eight bits."""

import random
from pathlib import Path

import pytest
import torch

from container.engine.engine import Engine
from container.errors import ConfigError
from container.messages.engine import SamplingParams
from container.model.engine_loader import load_engine
from container.model.execution.factory import make_runner
from container.model.execution.model_runner import TorchModelRunner
from container.model.kv_cache.cache import FP8, KVCache, LayerShape
from container.settings.settings import Settings
from tests.support.engines import Job, engine_config, ids, run
from tests.support.models import tiny_models
from tests.support.models.prepared import prepare
from tests.support.rank_engines import save

CPU = torch.device("cpu")
SHAPE = LayerShape(kv_heads=2, key_dim=8, value_dim=8)


def _engine(cache_dtype: torch.dtype | None, **sizes: int) -> Engine:
    model = prepare(tiny_models.make("llama"), torch.float32, CPU, cache_dtype=cache_dtype)
    config = engine_config(**sizes)
    return Engine(make_runner(model, config, end_token_ids=frozenset()), config, end_token_ids=[])


@pytest.mark.parametrize("dtype", sorted(FP8, key=str))
def test_cached_values_are_rounded_to_eight_bits(dtype: torch.dtype) -> None:
    cache = KVCache([SHAPE], num_blocks=3, block_size=4, dtype=dtype, device=CPU)
    states = torch.randn(8, 2, 8, generator=torch.Generator().manual_seed(1)) * 3
    states[0, 0, 0], states[1, 1, 1] = 1e6, -1e6  # become the largest, not infinite
    tokens, heads = torch.arange(8)[:, None], torch.arange(2)
    slots = (tokens // 4 * 2 + heads) * 4 + tokens % 4
    cache.write(0, states, states * 2, slots)
    rows = torch.tensor([0, 2, 1, 3])  # both blocks of the first head, then of the second
    keys, values = cache.gather(0, rows, 1, torch.float32)
    assert torch.equal(keys, cache.as_stored(states).transpose(0, 1))
    assert torch.equal(values, cache.as_stored(states * 2).transpose(0, 1))
    assert keys.isfinite().all()
    inside = states.abs() < 100
    assert torch.allclose(keys.transpose(0, 1)[inside], states[inside], rtol=0.13, atol=0.01)


def test_fp8_output_does_not_depend_on_chunks_or_cache() -> None:
    rnd = random.Random(4)
    prompt = [rnd.randrange(2, tiny_models.VOCABULARY) for _ in range(50)]
    job = Job(prompt, SamplingParams(20, temperature=1.0, seed=3))
    whole = ids(run(_engine(torch.float8_e4m3fn), [job])[0])
    cut = ids(run(_engine(torch.float8_e4m3fn, max_batch_tokens=7), [job])[0])
    engine = _engine(torch.float8_e4m3fn)
    twice = run(engine, [job, Job(prompt, job.params, at_step=30)])
    assert engine.load.cached_tokens > 0
    assert whole == cut == ids(twice[0]) == ids(twice[1])


def test_a_token_takes_half_the_memory(tmp_path: Path) -> None:
    folder = save("llama", tmp_path)
    per_token = {}
    for name in ("auto", "fp8"):
        environ = {"HF_MODEL_ID": str(folder), "KV_CACHE_DTYPE": name, "DTYPE": "bfloat16"}
        settings = Settings.from_environ(environ | {"MAX_BATCH_TOTAL_TOKENS": "4096"})
        engine, _ = load_engine(settings, lambda _: None)
        assert isinstance(engine.runner, TorchModelRunner)
        cache = engine.runner.forward.cache
        per_token[name] = sum(one.nbytes for one in cache.keys + cache.values)
    assert per_token["fp8"] * 2 == per_token["auto"]


def test_a_model_without_paged_attention_cannot_have_one() -> None:
    with pytest.raises(ConfigError, match="KV_CACHE_DTYPE cannot work here"):
        prepare(tiny_models.make("t5"), torch.float32, CPU, cache_dtype=torch.float8_e5m2)
