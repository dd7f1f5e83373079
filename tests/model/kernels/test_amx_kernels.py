"""The kernels for AMX with tiles in C, so that any processor runs them; a start where they fail."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from container.model.fallbacks import Fallbacks
from container.model.kernels import build as build_kernels
from container.model.kernels import processor
from container.model.kernels.cpu import Kernels
from container.model.kernels.processor import has_amx, library_names
from container.model.layers import cpu_linear
from container.model.layers.cpu_linear import CpuLinear
from container.model.layers.int8_linear import quantized
from container.model.loading import cpu_kernels
from container.model.loading.kernel_selftest import check
from tests.support.servers import ROOT

pytestmark = pytest.mark.skipif(build_kernels.MACHINE != "x86_64", reason="AMX is of x86")


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """The library for AMX, but with tiles and pairs in C."""
    path = tmp_path_factory.mktemp("amx") / "kernels-amx_in_c.so"
    subprocess.run(
        [
            *build_kernels.find_compiler(), *build_kernels.OPTIONS, *build_kernels.WARNINGS,
            "-Werror", *build_kernels.V3, '-DAMX_IN_C="amx_in_c.h"', "-I",
            ROOT / "tests/support/amx", "-I", build_kernels.SOURCE.parent,
            f'-DSOURCE_HASH="{build_kernels.source_hash()}"', "-o", path, build_kernels.SOURCE,
        ],
        check=True,
    )  # fmt: skip
    return Kernels(path)


def _without_tiles() -> Kernels:
    return Kernels(build_kernels.library(library_names()[-1]))


def test_the_self_test_passes(kernels: Kernels) -> None:
    assert kernels.has_tiles
    check(kernels)


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("inputs", [2, 30, 32, 34, 128, 198, 4096, 4130])
def test_products_of_any_width_keep_a_rows_bits(
    inputs: int, is_int8: bool, kernels: Kernels
) -> None:
    generator = torch.Generator().manual_seed(inputs)
    weight, rows = (torch.randn(n, inputs, generator=generator).bfloat16() for n in (100, 70))
    product = CpuLinear(weight, None, kernels, int8_weights=is_int8, fp32_out=True)
    together = product(rows).clone()
    for count in (1, 2, 15, 16, 17, 33, 64, 65):
        assert torch.equal(product(rows[:count]), together[:count]), count
    numbers, scales = quantized(weight)
    expected = rows.float() @ (numbers * scales[:, None] if is_int8 else weight.float()).T
    assert (together - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_products_stay_with_kernels_that_have_tiles(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_linear, "has_amx", lambda: True)
    weight = torch.randn(48, 64).bfloat16()
    assert cpu_linear.can_use_gemm(kernels, weight)
    assert not cpu_linear.can_use_gemm(_without_tiles(), weight)


@pytest.mark.skipif(not has_amx(), reason="this processor has no AMX")
@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("inputs", [2, 34, 198, 576])
def test_the_processors_tiles_compute_what_tiles_in_c_do(
    inputs: int, is_int8: bool, kernels: Kernels
) -> None:
    generator = torch.Generator().manual_seed(inputs)
    weight, rows = (torch.randn(n, inputs, generator=generator).bfloat16() for n in (100, 70))
    on_hardware = Kernels(build_kernels.library("amx"))
    results = [
        CpuLinear(weight, None, library, int8_weights=is_int8, fp32_out=True)(rows).clone()
        for library in (on_hardware, kernels)
    ]
    assert torch.equal(*results)


def test_a_limit_of_instruction_sets_is_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities = {"amx_tile": True, "avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert processor.library_names() == ["amx", "avx512_bf16"]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    assert processor.library_names() == ["avx512_bf16"]
    assert processor.processor_name() == "avx512_bf16"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx512_core")
    assert processor.library_names() == ["avx512"]
    assert not processor.has_bf16()


def test_refused_tiles_fall_back_to_the_next_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An instruction that is not allowed ends a process, and never the server's."""
    own = library_names()[-1]
    probe = tmp_path / "probe.py"
    probe.write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    monkeypatch.setattr(cpu_kernels, "TILE_PROBE", probe)
    monkeypatch.setattr(cpu_kernels, "library_names", lambda: ["amx", own])
    fallbacks = Fallbacks()
    kernels = cpu_kernels.load_kernels(fallbacks)
    assert kernels is not None
    assert kernels.name == own
    [line] = fallbacks.lines
    assert line.startswith("CPU kernels: the library amx cannot be used (")
    assert f"so layers run in the library {own} (slower)" in line
