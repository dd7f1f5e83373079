"""Every path that is slower than this machine allows: a fault puts it in, the fallbacks name it."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from container.errors import ConfigError, ModelLoadError
from container.model import embedder_loader
from container.model.attention import latent, unpadded
from container.model.attention.unpadded import Span
from container.model.embedding import embedder as embedder_module
from container.model.embedding.embedder import Embedder
from container.model.execution.factory import capture_obstacle
from container.model.fallbacks import Fallbacks
from container.model.kernels import build
from container.model.layers import decoder_layer
from container.model.layers.cpu_decoder import DecoderStack
from container.model.layers.cpu_encoder import EncoderStack
from container.model.layers.cpu_layer_ops import CpuLayerOps
from container.model.layers.cpu_linear import CpuLinear
from container.model.layers.layer_ops import LayerOps
from container.model.layers.linear import FastLinear
from container.model.loaded_model import LoadedModel
from container.model.loading import cpu_kernels, weights
from container.model.loading.checkpoint_loader import CheckpointLoader
from container.model.loading.config import load_config
from container.model.loading.paged_trial import PagedTrial
from container.model.optimize import fusing
from container.model.parallel.placement import Machine, place
from container.model.reference_check import Mismatch, Reference
from container.settings.settings import Settings
from tests.support.models import embedders, prepared, tiny_models
from tests.support.models.faults import BF16, CPU, F32, Patch, change_result

Lines = tuple[str, ...]
Serve = Callable[[pytest.MonkeyPatch], Lines]
F16, F8 = torch.float16, torch.float8_e4m3fn
GIB = 2**30


def _raise(*_: object, **__: object) -> Any:
    raise RuntimeError("injected")


def _louder(out: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return out * 1.05


def _kernels(monkeypatch: pytest.MonkeyPatch) -> Lines:
    fallbacks = Fallbacks()
    assert cpu_kernels.load_kernels(fallbacks) is None
    return fallbacks.lines


def _no_library(monkeypatch: pytest.MonkeyPatch) -> Lines:
    monkeypatch.setattr(build, "library", lambda _: Path("/nowhere.so"))
    return _kernels(monkeypatch)


def _self_test_fails(monkeypatch: pytest.MonkeyPatch) -> Lines:
    monkeypatch.setattr(cpu_kernels, "check", _raise)
    return _kernels(monkeypatch)


def _served(name: str = "llama", dtype: torch.dtype = F32, **options: Any) -> Serve:
    def serve(_: pytest.MonkeyPatch) -> Lines:
        return prepared.prepare(tiny_models.make(name, dtype), dtype, CPU, **options).fallbacks

    return serve


def _with(owner: object, name: str, value: object, serve: Serve) -> Serve:
    def patched(monkeypatch: pytest.MonkeyPatch) -> Lines:
        monkeypatch.setattr(owner, name, value)
        return serve(monkeypatch)

    return patched


def _stack_is_off(monkeypatch: pytest.MonkeyPatch) -> Lines:
    change_result(DecoderStack, "forward", _louder)(monkeypatch)
    return _served()(monkeypatch)


def _ops_are_off(monkeypatch: pytest.MonkeyPatch) -> Lines:
    change_result(CpuLayerOps, "act_and_mul", _louder)(monkeypatch)
    return _served()(monkeypatch)


def _placed(gib: float, **environ: str) -> Serve:
    def serve(_: pytest.MonkeyPatch) -> Lines:
        fallbacks = Fallbacks()
        config = tiny_models.CONFIGS["bloom"]
        settings = Settings.from_environ(environ)
        machine = Machine((8 * GIB,) * 2, 64 * GIB)
        place(settings.placement, config, int(gib * GIB), machine, fallbacks)
        return fallbacks.lines

    return serve


def _obstacle(requested: tuple[int, ...] | None, **changes: Any) -> str | None:
    loaded = prepared.prepare(tiny_models.make("llama"), F32, CPU)
    return capture_obstacle(requested, replace(loaded, device=torch.device("cuda"), **changes))


FAULTS: dict[str, tuple[Serve, str]] = {
    "no library": (_no_library, "CPU kernels: the library .* cannot be used .OSError: .*nowhere"),
    "a self-test that fails": (_self_test_fails, "CPU kernels: .*RuntimeError: injected"),
    "a dtype without kernels": (_served(dtype=F16), "CPU kernels: they do not compute in .*16"),
    "a cache without kernels": (_served(cache_dtype=F8), "CPU kernels: they read no cache of eig"),
    "four bits without kernels": (
        _served(quantize="int4", cpu_kernels=None),
        "weights of four or eight bits: no kernels multiply with them",
    ),
    "attention that is not paged": (
        _served("mvp"),
        "attention: requests run one after another, .*computes attention in its own way",
    ),
    "latents that are not kept": (
        _with(latent, "attach", _raise, _served("deepseek_v3")),
        "KV cache: it holds expanded keys and values.*injected",
    ),
    "linear layers that cannot be packed": (
        _with(CpuLinear, "forward", _raise, _served()),
        "packed linear layers: a trial of one failed",
    ),
    "fused layers whose ops raise": (
        _with(CpuLayerOps, "act_and_mul", _raise, _served()),
        "fused layers with CpuLayerOps: disabled, since their check failed: RuntimeError: injected",
    ),
    "fused layers that are off": (
        _ops_are_off,
        "fused layers with CpuLayerOps: disabled, since they are off by",
    ),
    "fused layers that cannot be built": (
        _with(decoder_layer, "_spec", _raise, _served()),
        "fused layers: disabled for 2 layers, since they cannot be built: RuntimeError: injected",
    ),
    "one call for all layers that is off": (
        _stack_is_off,
        "all layers in one call: disabled, since they are off by .* layers run one by one",
    ),
    "one call for all layers that raises": (
        _with(DecoderStack, "forward", _raise, _served()),
        "all layers in one call: disabled, since their check failed: RuntimeError: injected",
    ),
    "a model that is spread": (
        _placed(4),
        "placement: layers are spread over 2 GPUs, which work one at a time, since",
    ),
    "a model that is offloaded": (
        _placed(40, SM_NUM_GPUS="1"),
        "placement: the weights .40.0 GiB. exceed the GPU's memory",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_a_fallback_with_reason_remedy_and_warning(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    serve, expected = FAULTS[fault]
    if "fused layers" in fault or "one call" in fault:
        assert _served()(monkeypatch) == ()
    lines = serve(monkeypatch)
    _assert_named(lines, expected, caplog)


def _assert_named(lines: Lines, expected: str, caplog: pytest.LogCaptureFixture) -> None:
    """Compare the first fallback with a pattern, and each with a warning of the log."""
    assert lines
    assert re.match(expected, lines[0]), lines
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    for line in lines:
        reason, _, remedy = line.partition(" (slower); ")
        assert reason
        assert remedy
        assert f"slow path: {line}" in warnings


@pytest.mark.parametrize(
    ("requested", "changes", "expected"),
    [
        (None, {}, "which reads lengths on the host"),
        (None, {"mixers": object()}, None),  # never captured
        (None, {"decoder": object()}, None),
        (None, {"layers": None}, None),  # the cache is named already
    ],
)
def test_a_gpu_without_graphs_says_why(
    requested: tuple[int, ...] | None, changes: dict[str, Any], expected: str | None
) -> None:
    obstacle = _obstacle(requested, **changes)
    assert (obstacle is None) == (expected is None)
    assert expected is None or expected in str(obstacle)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gpt_neox", "t5", "bamba"])
def test_what_a_model_or_a_cpu_never_has_is_no_fallback(name: str, dtype: torch.dtype) -> None:
    assert prepared.prepare(tiny_models.make(name, dtype), dtype, CPU).fallbacks == ()


def test_settings_that_ask_for_a_device_map_are_no_fallback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert _placed(4, TENSOR_PARALLEL="1")(monkeypatch) == ()
    assert _placed(4, MAX_MEMORY="0=1GiB,cpu=9GiB")(monkeypatch) == ()


def test_a_failed_pass_in_float32_is_not_proved(caplog: pytest.LogCaptureFixture) -> None:
    rows, fallbacks = torch.randn(4, 32), Fallbacks()

    class OnlyFloat(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.float())

    module = OnlyFloat(32, 32)

    def run() -> torch.Tensor:
        return module(rows).detach()

    reference = Reference(module, run, F32, fallbacks)
    reference.check(run(), "it")
    with pytest.raises(Mismatch):
        reference.check(-run(), "it")
    assert fallbacks.lines == (), "nothing is slower"
    [part] = fallbacks.not_proved
    assert re.match("outputs to less than 0.3 of a row, .*RuntimeError: .*dtype", part)
    assert f"checks: not proved: {part}" in caplog.text


def _scale_a_linear(_: None, model: PreTrainedModel, *__: object, **___: object) -> None:
    linear = next(part for part in model.modules() if isinstance(part, FastLinear))
    linear.register_forward_hook(lambda _, __, out: out * 1.05)


EMBEDDER_FAULTS: dict[str, tuple[Patch, str]] = {
    "attention without padding": (
        change_result(unpadded, "spans_of", lambda _, lengths: [Span(0, 1, sum(lengths))]),
        "embedder: attention without padding: disabled, so texts are padded .*off by",
    ),
    "fused layers": (
        change_result(EncoderStack, "forward", _louder),
        "embedder: fused layers: disabled: Mismatch: fused encoder layers is off by",
    ),
    "packed layers": (
        change_result(embedder_module, "pack", _scale_a_linear),
        "embedder: packed layers: disabled: packed layers is off by",
    ),
}


@pytest.mark.parametrize("fault", EMBEDDER_FAULTS)
def test_an_embedder_names_its_fallbacks(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    folder = embedders.save_embedder(tmp_path, "mpnet" if fault == "packed layers" else "bert")
    patch, expected = EMBEDDER_FAULTS[fault]
    patch(monkeypatch)
    fallbacks = Fallbacks("embedder")
    embedder, width = embedder_loader.prepare_embedder(
        lambda: embedder_loader.load_model(folder, CPU, F32), CPU, prepared.cpu_kernels(),
        fallbacks, lambda _: None,
    )  # fmt: skip
    assert isinstance(embedder, Embedder)
    assert width > 0
    lines = tuple(line for line in fallbacks.lines if fault in line)
    _assert_named(lines, expected, caplog)


def test_a_slow_embedder_is_refused_where_a_fast_one_is_required(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build, "library", lambda _: Path("/nowhere.so"))
    folder = embedders.save_embedder(tmp_path, "bert")
    environ = {"EMBEDDING_MODEL_ID": str(folder), "REQUIRE_FAST_PATH": "1"}
    with pytest.raises(ConfigError, match="is a slow path: embedder: CPU kernels: the library"):
        embedder_loader.load_embedder(Settings.from_environ(environ), lambda _: None)


def _load(folder: Path, **options: Any) -> LoadedModel:
    kernels = prepared.cpu_kernels()
    return weights.load_model(folder, load_config(folder), F32, CPU, cpu_kernels=kernels, **options)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_models.make("llama").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("check", ["check_served", "check_whole"])
def test_a_fast_form_that_is_refused_leaves_the_models_own(
    check: str, saved: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise Mismatch("it is off by 9")

    monkeypatch.setattr(PagedTrial, check, refuse)
    modules: list[PreTrainedModel] = []

    def note(module: PreTrainedModel, *_: object, **__: object) -> PreTrainedModel:
        modules.append(module)
        return module

    change_result(CheckpointLoader, "load", note)(monkeypatch)
    loaded = _load(saved)
    assert loaded.attention == "own"
    assert len(modules) == 2
    assert loaded.module is modules[1], "the first one was changed"
    _assert_named(loaded.fallbacks, "attention: requests run one .*it is off by 9", caplog)
    with pytest.raises(ModelLoadError, match=r"it is off by 9; try it without QUANTIZE=int8$"):
        _load(saved, quantize="int8")


def test_fallbacks_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    fallbacks = Fallbacks()
    for _ in range(2):
        fallbacks.add("one", "it failed", "mend it")
    fallbacks.extend(["two: it failed (slower); mend it"])
    assert len(fallbacks.lines) == 2
    assert len(caplog.records) == 1


def test_ops_that_are_plain_have_no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that the kernels do not support, such as with chunks, run in PyTorch operations."""
    monkeypatch.setattr(fusing, "fits_cpu_kernels", lambda _: False)
    loaded = prepared.prepare(tiny_models.make("llama"), F32, CPU)
    assert loaded.fallbacks == ()
    ops = [part.ops for part in loaded.module.modules() if hasattr(part, "ops")]
    assert {type(op) for op in ops} == {LayerOps}
