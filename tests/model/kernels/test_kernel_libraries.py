"""Libraries of CPU kernels: all equal torch, and unusable ones are left alone."""

from pathlib import Path

import pytest
import torch

from container.model.fallbacks import Fallbacks
from container.model.kernels import build as build_kernels
from container.model.kernels.cpu import Kernels
from container.model.kernels.processor import library_names
from container.model.layers.decoder_layer import FusedDecoderLayer
from container.model.layers.layer_ops import LayerOps
from container.model.loading import cpu_kernels
from container.model.loading.cpu_kernels import load_kernels
from container.model.loading.kernel_selftest import check
from tests.support.models import prepared, tiny_models
from tests.support.models.prepared import prepare

CPU = torch.device("cpu")
# Tests may look for another library than this.
COMPILED = build_kernels.library(library_names()[-1])
# What a processor runs beside its best, which torch names.
KNOWN_BY = {"default": ["default"]}
KNOWN_BY["avx2"] = [*KNOWN_BY["default"], "avx2"]
KNOWN_BY["avx512"] = [*KNOWN_BY["avx2"], "avx512"]
KNOWN_BY["avx512_bf16"] = [*KNOWN_BY["avx512"], "avx512_bf16"]
KNOWN_BY["amx"] = [*KNOWN_BY["avx512_bf16"], "amx"]
KNOWN_BY["neon"] = ["neon"]
KNOWN_BY["neon_bf16"] = ["neon", "neon_bf16"]


def _kernels() -> Kernels:
    return prepared.cpu_kernels()


@pytest.mark.parametrize("name", build_kernels.TARGETS)
def test_every_kernel_library_equals_torch(name: str) -> None:
    best = library_names()[0]
    if name not in KNOWN_BY[best]:
        pytest.skip(f"the best that this processor knows is {best}")
    check(Kernels(build_kernels.library(name)))


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the only library is looked for."""
    path = tmp_path / "library.so"
    monkeypatch.setattr(build_kernels, "library", lambda _: path)
    monkeypatch.setattr(cpu_kernels, "library_names", lambda: library_names()[-1:])
    return path


def _assert_torch_serves(caplog: pytest.LogCaptureFixture, reason: str) -> None:
    fallbacks = Fallbacks()
    kernels = load_kernels(fallbacks)
    assert kernels is None
    loaded = prepare(tiny_models.make("llama"), torch.float32, CPU, cpu_kernels=kernels)
    assert loaded.fallbacks == ()  # the reason is named once
    [line] = fallbacks.lines
    assert line.startswith(f"CPU kernels: the library {library_names()[-1]} cannot be used (")
    assert reason in line
    assert [record.levelname for record in caplog.records if line in record.message] == ["WARNING"]
    layers = [module for module in loaded.module.modules() if isinstance(module, FusedDecoderLayer)]
    assert [type(layer.ops) for layer in layers] == [LayerOps, LayerOps]


def test_without_a_library_torch_serves(library: Path, caplog: pytest.LogCaptureFixture) -> None:
    _assert_torch_serves(caplog, "cannot open shared object file")


def test_a_file_that_is_no_library_is_left_alone(
    library: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library.write_bytes(b"\x7fELF and no more")
    _assert_torch_serves(caplog, str(library))


def test_a_library_of_another_source_is_left_alone(
    library: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.write_bytes(COMPILED.read_bytes())
    monkeypatch.setattr(build_kernels, "source_hash", lambda: "another")
    _assert_torch_serves(caplog, "compiled from other sources")


FUNCTIONS = ["add_norm", "silu_mul", "_argmax", "_exp_totals", "attend"]
FOR_PRODUCTS = ["gemm", "decode", "encode"]


@pytest.mark.parametrize("function", FUNCTIONS + FOR_PRODUCTS)
def test_a_library_that_computes_something_else_is_left_alone(
    function: str, library: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.write_bytes(COMPILED.read_bytes())
    if function in FOR_PRODUCTS and not _kernels().supports_gemm:
        pytest.skip("this processor leaves products to torch")
    load = Kernels.__init__

    def broken(self: Kernels, path: Path) -> None:
        load(self, path)
        setattr(self, function, lambda *_: None)

    monkeypatch.setattr(Kernels, "__init__", broken)
    _assert_torch_serves(caplog, "self-test failed")
