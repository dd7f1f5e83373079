"""The kernels for AMX, with tiles in C, as no processor here has them; a start where they fail."""

import subprocess
from collections.abc import Iterator

import pytest
import torch

from container.model.fallbacks import Fallbacks
from container.model.kernels import build as build_kernels
from container.model.kernels.cpu import Kernels
from container.model.layers import cpu_linear
from container.model.layers.cpu_linear import CpuLinear
from container.model.loading import cpu_kernels
from container.model.loading.kernel_selftest import check
from tests.support.models import prepared
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
    numbers, scales = cpu_linear.quantized(weight)
    expected = rows.float() @ (numbers * scales[:, None] if is_int8 else weight.float()).T
    assert (together - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_products_stay_with_kernels_that_have_tiles(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_linear, "has_amx", lambda: True)
    weight = torch.randn(48, 64).bfloat16()
    assert cpu_linear.can_use_gemm(kernels, weight)
    assert not cpu_linear.can_use_gemm(prepared.cpu_kernels(), weight)


def test_refused_tiles_fall_back_to_the_next_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The library for AMX ends a process on a processor without it, and never the server's."""
    own = cpu_kernels.library_names()[-1]
    monkeypatch.setattr(cpu_kernels, "library_names", lambda: ["amx", own])
    fallbacks = Fallbacks()
    kernels = cpu_kernels.load_kernels(fallbacks)
    assert kernels is not None
    assert kernels.name == own
    [line] = fallbacks.lines
    assert line.startswith("CPU kernels: the library amx cannot be used (")
    assert f"so layers run in the library {own} (slower)" in line
