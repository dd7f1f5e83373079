import json

import pytest

from sagemaker_deploy.plan import instances
from sagemaker_deploy.plan.instances import GIB
from sagemaker_deploy.plan.sizing import ModelSize, estimate, kv_bytes_per_token, sentences
from tests.support.aws.local_sagemaker import DEMO_MODEL

LLAMA_8B = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
}


def _instance(name: str) -> instances.Instance:
    instance = instances.find(name)
    assert instance
    return instance


def test_cache_bytes_of_a_token_count_grouped_heads() -> None:
    assert kv_bytes_per_token(LLAMA_8B) == 2 * 32 * 8 * 128 * 2


def test_a_config_without_sizes_counts_nothing() -> None:
    assert kv_bytes_per_token({"num_hidden_layers": 2}) == 0


def test_the_demo_models_config_is_understood() -> None:
    assert kv_bytes_per_token(json.loads((DEMO_MODEL / "config.json").read_text())) > 0


@pytest.mark.parametrize(
    ("name", "gpus", "gib"),
    [("ml.g5.12xlarge", 4, 96), ("ml.p5.48xlarge", 8, 640), ("ml.c7i.2xlarge", 0, 16)],
)
def test_an_instances_memory_is_known(name: str, gpus: int, gib: int) -> None:
    assert _instance(name).gpus == gpus
    assert _instance(name).model_memory_bytes == gib * GIB


@pytest.mark.parametrize("name", ["ml.g5.3xlarge", "ml.inf2.xlarge", "m5.large", "ml.m5"])
def test_an_instance_that_is_not_listed_is_unknown(name: str) -> None:
    assert instances.find(name) is None


def test_an_8b_model_fits_a_24_gib_gpu_and_70b_does_not() -> None:
    small = ModelSize(16 * 10**9, kv_bytes_per_token(LLAMA_8B))
    assert estimate(small, _instance("ml.g5.xlarge"), 8, 4096).fits
    account_state, warnings = sentences(
        ModelSize(140 * 10**9, source="the Hub"), _instance("ml.g5.xlarge"), 8, 4096
    )
    assert "130.4 GiB (the Hub)" in account_state[0]
    assert "too small" in warnings[0]


def test_weights_that_fit_without_the_whole_cache_are_a_warning() -> None:
    size = ModelSize(16 * 10**9, kv_bytes_per_token(LLAMA_8B))
    _, warnings = sentences(size, _instance("ml.g5.xlarge"), 64, 8192)
    assert "the weights fit, the whole KV cache does not" in warnings[0]
