"""The theorem for models whose layers accelerate spreads: layers that do not fit are on disk."""

from pathlib import Path

import pytest

from container.model.fallbacks import Fallbacks
from container.model.loading.config import read_config
from container.model.loading.weights import load_weights, plan_load
from container.settings.engine import PlacementSettings
from container.settings.model import ModelSettings
from container.settings.settings import Settings
from tests.model.parallel.test_tensor_parallel import jobs
from tests.support.models import tiny_models
from tests.support.rank_engines import generate, save


@pytest.mark.parametrize(
    ("name", "attention"),
    [("llama", "paged"), ("gemma3", "paged"), ("bloom", "own"), ("t5", "own"), ("lfm2", "own")],
)
def test_greedy_output_of_a_spread_model_equals_generate(
    name: str, attention: str, tmp_path: Path
) -> None:
    requests = jobs(4)
    size = sum(parameter.numel() * 4 for parameter in tiny_models.make(name).parameters())
    environ = {"MAX_MEMORY": f"cpu={size / 2**11:.0f}KiB", "MAX_BATCH_TOTAL_TOKENS": "2048"}
    info, got = generate(save(name, tmp_path), environ, requests)
    assert info.attention == attention
    for index, job in enumerate(requests):
        expected = tiny_models.reference(name, tuple(job.prompt), job.params.max_new_tokens)
        assert got[index] == expected, f"request {index}"


def test_layers_that_do_not_fit_are_offloaded_to_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    settings = Settings(
        model=ModelSettings(model_id=str(save("llama", tmp_path)), dtype="bfloat16"),
        placement=PlacementSettings(max_memory="cpu=150KiB"),
    )
    config = read_config(settings.model, tmp_path)
    placement, dtype = plan_load(
        settings.model, settings.placement, config, tmp_path, 0, Fallbacks()
    )
    module = load_weights(settings.model, tmp_path, config, dtype, placement).module
    assert set(module.hf_device_map.values()) == {"cpu", "disk"}
    assert "on disk" in caplog.text


@pytest.mark.parametrize("limit", ["1KiB", "10GiB"])
def test_all_may_fit_or_nothing(limit: str, tmp_path: Path) -> None:
    requests = jobs(2)
    environ = {"MAX_MEMORY": f"cpu={limit}", "MAX_BATCH_TOTAL_TOKENS": "2048"}
    _, got = generate(save("llama", tmp_path), environ, requests)
    for index, job in enumerate(requests):
        expected = tiny_models.reference("llama", tuple(job.prompt), job.params.max_new_tokens)
        assert got[index] == expected
