"""Fallbacks of a GPU whose optimisation fails; a CPU stands in for it."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from container.errors import ConfigError, ModelLoadError
from container.messages.engine import SamplingParams
from container.model import layers, torch_versions
from container.model.attention.metadata import AttentionParams
from container.model.attention.varlen import AttentionKernels, Kernel
from container.model.fallbacks import Fallbacks
from container.model.layers.layer_ops import LayerOps, LayerSpec
from container.model.layers.linear import PlainLinear
from container.model.loaded_model import LoadedModel
from container.model.loading import memory_plan, weights
from container.model.loading.config import load_config
from container.model.loading.engine_limits import size_engine
from container.model.loading.memory_plan import KVCapacity, measure_capacity
from container.model.optimize import fusing
from container.model.parallel.placement import Placement
from container.settings.settings import Settings
from tests.support.engines import Job, ids, run
from tests.support.models import packed_checkpoints as packed
from tests.support.models import tiny_models
from tests.support.models.prepared import prepare
from tests.support.torch_engines import torch_engine

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
F32 = torch.float32
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}


class NoCompiler(LayerOps):
    """Ops whose kernels cannot be compiled."""

    def act_and_mul(self, gate_up: torch.Tensor, step: object) -> torch.Tensor:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")


class Wrong(LayerOps):
    """Ops with a kernel whose results are off."""

    def act_and_mul(self, gate_up: torch.Tensor, step: Any) -> torch.Tensor:
        return super().act_and_mul(gate_up, step) * 1.05


@pytest.mark.parametrize(
    ("first", "logged"),
    [
        (NoCompiler, "since their check failed: RuntimeError: Failed to find C compiler"),
        (Wrong, "fused layers with Wrong: disabled, since they are off by"),
    ],
)
def test_layers_whose_kernels_fail_use_torch(
    first: type[LayerOps], logged: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO")
    choices = iter
    monkeypatch.setattr(fusing, "_ops_choices", lambda *_: choices([first, LayerOps]))
    engine = torch_engine("llama")
    assert logged in caplog.text
    job = Job([5, 6, 7], SamplingParams(max_new_tokens=9))
    assert ids(run(engine, [job])[0]) == tiny_models.reference("llama", (5, 6, 7), 9)


def test_a_triton_that_cannot_be_imported_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    norm = torch.ones(8), 1e-6
    spec = LayerSpec(0, 2, 1, 4, AttentionParams(0.5), (norm, norm), None, torch.nn.SiLU())
    monkeypatch.setitem(sys.modules, "container.model.layers.triton_layer_ops", None)
    # An earlier test may have imported it; then it is an attribute of its package.
    monkeypatch.delattr(layers, "triton_layer_ops", raising=False)
    fallbacks = Fallbacks()
    assert fusing._triton_ops(spec, fallbacks) is None
    [line] = fallbacks.lines
    assert "Triton cannot be imported (ModuleNotFoundError" in line


def _out_of_memory_above(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(_: object, num_tokens: int, *__: object) -> int:
        if num_tokens > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return num_tokens * 1000

    monkeypatch.setattr(memory_plan, "measure_activations", measure)


def _measure(model: LoadedModel, placement: Placement, **environ: str) -> KVCapacity:
    settings = Settings.from_environ(environ)
    return measure_capacity(settings.engine, settings.placement, model, placement, has_own_gpu=True)


def test_steps_become_smaller_until_one_fits_the_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = prepare(tiny_models.make("llama"), F32, CPU)
    _out_of_memory_above(600, monkeypatch)
    environ = {"MAX_BATCH_PREFILL_TOKENS": "2048"}
    capacity = _measure(model, Placement((CPU,)), **environ)
    assert (capacity.batch_tokens, capacity.activations) == (512, 512_000)
    assert "a step of 2048 tokens does not fit the GPU's memory; steps have at most 1024" in (
        caplog.text
    )
    settings = Settings.from_environ(environ)
    assert size_engine(settings.engine, settings.memory, model, capacity).max_batch_tokens == 512


def test_a_gpu_without_memory_for_a_small_step_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepare(tiny_models.make("llama"), F32, CPU)
    _out_of_memory_above(100, monkeypatch)
    for placement in (Placement((CPU,)), Placement((GPU, GPU))):
        with pytest.raises(ModelLoadError, match="lower MAX_BATCH_PREFILL_TOKENS"):
            _measure(model, placement, MAX_BATCH_PREFILL_TOKENS="1024")


def test_the_obstacle_to_graph_capture_is_reported() -> None:
    paged = prepare(tiny_models.make("llama"), F32, CPU)
    assert "reads lengths on the host" in str(paged.capture_obstacle)
    kernels = AttentionKernels(Kernel.TRITON, Kernel.REFERENCE)
    assert replace(paged, kernels=kernels).capture_obstacle is None
    recurrent = prepare(tiny_models.make("mamba2"), F32, CPU)
    assert "its recurrent states" in str(recurrent.capture_obstacle)
    own = prepare(tiny_models.make("mvp"), F32, CPU)
    assert own.capture_obstacle == "its attention is not paged"


def _awq(folder: Path) -> Any:
    """Write a checkpoint; return the model with the weights that it means."""
    model = tiny_models.make("qwen2")
    packed.save(model, folder, packed.awq, AWQ)
    return model


def test_four_bit_checkpoints_without_a_kernel_are_dequantized(tmp_path: Path) -> None:
    expected = _awq(tmp_path).get_parameter("model.layers.0.mlp.up_proj.weight")
    config = load_config(tmp_path)
    loaded = weights.load_model(tmp_path, config, F32, CPU, cpu_kernels=None, dequantizes=True)
    plain = [module for module in loaded.module.modules() if isinstance(module, PlainLinear)]
    assert not plain or all(type(module.weight) is torch.nn.Parameter for module in plain)
    assert loaded.fallbacks == ()
    total = sum(p.numel() for p in tiny_models.make("qwen2").parameters())
    assert loaded.weight_bytes == 4 * total
    assert expected.dtype == F32


@pytest.mark.parametrize("quantize", [None, "awq"])
def test_without_the_quantizers_package_weights_are_dequantized(
    quantize: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    _awq(tmp_path)
    requested: dict[str, Any] = {}
    ready = prepare(tiny_models.make("qwen2"), F32, CPU)

    def load(*_: object, **options: Any) -> LoadedModel:
        requested.update(options)
        return ready

    monkeypatch.setattr(weights, "load_model", load)
    config = load_config(tmp_path)
    environ = {"QUANTIZE": quantize} if quantize else {}
    settings = Settings.from_environ(environ).model
    model = weights.load_weights(settings, tmp_path, config, F32, Placement((GPU,)))
    assert (requested["dequantizes"], requested["options"]) == (True, {})
    assert model.fallbacks[-1].startswith("weights of few bits: awq checkpoint: ")
    assert "awq checkpoint: " in caplog.text
    weights.load_weights(settings, tmp_path, config, F32, Placement((CPU,)), None, None, None)
    assert requested["dequantizes"] is False


def test_a_checkpoint_of_four_bits_is_not_sharded(tmp_path: Path) -> None:
    _awq(tmp_path)
    settings = Settings.from_environ({}).model
    placement = Placement((GPU, torch.device("cuda", 1)))
    with pytest.raises(ConfigError, match="set SM_NUM_GPUS=1 or DATA_PARALLEL"):
        weights.load_weights(settings, tmp_path, load_config(tmp_path), F32, placement)


def test_older_torch_has_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.delattr(torch.accelerator, "empty_host_cache")
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: calls.append("emptied"), False)
    torch_versions.empty_host_cache()
    monkeypatch.delattr(dist, "all_gather_single")
    monkeypatch.setattr(
        dist, "all_gather_into_tensor", lambda out, shard: calls.append((out, shard))
    )
    out, shard = torch.zeros(4), torch.zeros(2)
    torch_versions.all_gather(out, shard)
    assert calls == ["emptied", (out, shard)]
