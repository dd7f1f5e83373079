"""Which devices a model gets, for machines that are only numbers here."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import PretrainedConfig

from container.errors import ConfigError
from container.model.fallbacks import Fallbacks
from container.model.parallel.placement import Machine, Placement, place, weight_bytes
from container.settings.engine import PlacementSettings
from container.settings.settings import Settings
from tests.support.models import tiny_models

GIB = 2**30
FOUR = Machine((80 * GIB,) * 4, 200 * GIB)


def _config(name: str) -> PretrainedConfig:
    return deepcopy(tiny_models.ALL_CONFIGS[name])


def _place(
    name: str, machine: Machine = FOUR, *, gib: float = 10, replica: int = 0, **settings: str
) -> Placement:
    parsed = Settings.from_environ(settings)
    return place(
        parsed.placement,
        _config(name),
        int(gib * GIB),
        machine,
        Fallbacks(),
        quantize=parsed.model.quantize,
        replica=replica,
    )


def _gpus(*indices: int) -> tuple[torch.device, ...]:
    return tuple(torch.device("cuda", index) for index in indices)


def test_a_machine_without_gpus_uses_the_cpu() -> None:
    assert _place("llama", Machine((), 8 * GIB)) == Placement((torch.device("cpu"),))
    assert _place("llama", SM_NUM_GPUS="0") == Placement((torch.device("cpu"),))


def test_all_visible_gpus_are_used_unless_fewer_are_asked_for() -> None:
    assert _place("gpt_neox").devices == _gpus(0, 1, 2, 3)
    assert _place("gpt_neox", SM_NUM_GPUS="all").devices == _gpus(0, 1, 2, 3)
    assert _place("llama", SM_NUM_GPUS="2").devices == _gpus(0, 1)
    assert _place("llama", SM_NUM_GPUS="1") == Placement(_gpus(0))


def test_gpus_without_nccl_hold_whole_layers(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(FOUR.gpu_bytes, FOUR.cpu_bytes, has_nccl=False)
    caplog.set_level("INFO")
    assert _place("llama", machine, SM_NUM_GPUS="2").uses_device_map
    assert "since this build of torch has no NCCL" in caplog.text
    assert _place("llama", machine, SM_NUM_GPUS="1") == Placement(_gpus(0))
    with pytest.raises(ConfigError, match="this build of torch has no NCCL"):
        _place("llama", machine, SM_NUM_GPUS="2", TENSOR_PARALLEL="2")


def test_each_copy_gets_its_share_of_the_gpus() -> None:
    replicas = [_place("llama", replica=one, DATA_PARALLEL="2").devices for one in range(2)]
    assert replicas == [_gpus(0, 1), _gpus(2, 3)]
    single = [_place("llama", replica=one, DATA_PARALLEL="4").devices for one in range(4)]
    assert single == [_gpus(one) for one in range(4)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("llama", "4 heads over 2 KV heads cannot be divided by 4"),
        ("bloom", "no plan for splitting a bloom model"),
        ("t5", "an encoder"),
        ("qwen3_next", "layers that are not paged (linear_attention)"),
    ],
)
def test_unshardable_models_use_a_device_map(
    name: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    placed = _place(name)
    assert placed.devices == _gpus(0)
    assert placed.max_memory is not None
    assert set(placed.max_memory) == {0, 1, 2, 3, "cpu"}
    assert message in caplog.text


def test_whole_layers_are_spread_on_request() -> None:
    assert _place("llama", TENSOR_PARALLEL="1", SM_NUM_GPUS="2").uses_device_map
    placed = _place("llama", MAX_MEMORY="1=1GiB, cpu=0.5GiB")
    assert placed == Placement(_gpus(1), {1: GIB, "cpu": GIB // 2})
    assert _place("llama", MAX_MEMORY="cpu=1GiB").device.type == "cpu"


def test_weights_larger_than_a_gpu_go_on_to_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    small = Machine((16 * GIB,), 64 * GIB)
    assert not _place("llama", small, gib=15).uses_device_map
    assert _place("llama", small, gib=17).uses_device_map
    assert "(17.0 GiB) exceed the GPU's memory" in caplog.text
    assert _place("llama", small, gib=15, CUDA_MEMORY_FRACTION="0.5").uses_device_map


@pytest.mark.parametrize("number", ["1", "4", "all"])
def test_a_machine_without_a_gpu_serves_on_its_cpu(number: str) -> None:
    """People keep the environment of another machine; the report at start names it."""
    assert _place("llama", Machine((), 64 * GIB), SM_NUM_GPUS=number).device.type == "cpu"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"SM_NUM_GPUS": "5"}, "SM_NUM_GPUS=5, but this machine has 4 GPUs"),
        ({"DATA_PARALLEL": "3"}, "4 GPUs cannot be divided equally"),
        ({"TENSOR_PARALLEL": "3"}, "each replica has 4 GPUs; set it to that or 1"),
        ({"TENSOR_PARALLEL": "4"}, "4 heads over 2 KV heads"),
        ({"MAX_MEMORY": "7=1GiB"}, "MAX_MEMORY names GPU 7, but this machine has 4"),
    ],
)
def test_settings_that_no_placement_can_follow_are_refused(
    settings: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _place("llama", **settings)


@pytest.mark.parametrize(
    "value",
    [
        "12",
        "0=20",
        "cpu=20GB",
        "gpu=1GiB",
        "0=xGiB",
        "0=infGiB",
        "0=-1GiB",
        "-1=1GiB",
        "0=1GiB,0=2GiB",
    ],
)
def test_a_limit_of_memory_that_cannot_be_read_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="MAX_MEMORY: must be such as"):
        Settings.from_environ({"MAX_MEMORY": value})


def test_a_quantized_model_is_spread(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert _place("llama", SM_NUM_GPUS="2", QUANTIZE="bitsandbytes-nf4").uses_device_map
    assert "QUANTIZE=bitsandbytes-nf4 is for whole layers" in caplog.text
    quantized = _config("llama")
    quantized.quantization_config = {"quant_method": "gptq", "bits": 4}
    assert place(PlacementSettings(num_gpus=2), quantized, GIB, FOUR, Fallbacks()).uses_device_map
    assert _place("llama", SM_NUM_GPUS="2", QUANTIZE="int8").is_tensor_parallel


def test_quantized_sizes_count_in_placement(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(4000))
    config = _config("llama")
    config.dtype = torch.float32
    expected_bytes = {None: 2000, "int8": 2000, "bitsandbytes": 1000, "bitsandbytes-nf4": 500}
    for name, expected in expected_bytes.items():
        assert weight_bytes(tmp_path, config, torch.bfloat16, name) == expected


def test_a_limit_of_memory_is_for_one_whole_copy() -> None:
    for other in ({"DATA_PARALLEL": "2"}, {"TENSOR_PARALLEL": "2"}):
        with pytest.raises(ConfigError, match="MAX_MEMORY is for one copy"):
            Settings.from_environ({"MAX_MEMORY": "cpu=1GiB"} | other)
