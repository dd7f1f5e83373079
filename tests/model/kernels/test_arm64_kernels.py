"""The kernels for arm64, compiled here and run by an emulator: the self-test of a start."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from container.model.kernels import build as build_kernels
from container.model.layers.cpu_linear import CpuLinear
from container.model.loading.kernel_selftest import check
from tests.support.arm64.emulated_kernels import (
    Addresses,
    EmulatedKernels,
    compile_driver,
    missing_tools,
)

# On a busy machine compiling alone takes minutes.
pytestmark = pytest.mark.timeout(900)
# A processor without any extension, and one with all.
PROCESSORS = {"neon": "cortex-a53", "neon_bf16": "max"}


@pytest.fixture(scope="module", params=build_kernels.ARM64)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A driver for one of the targets."""
    if missing := missing_tools():
        reason = f"ARM64 KERNELS NOT TESTED: {', '.join(missing)} missing; run make arm64-tools"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return compile_driver(request.param, tmp_path_factory.mktemp("arm64"))


@pytest.fixture
def kernels(program: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedKernels]:
    addresses = Addresses()
    addresses.watch(monkeypatch)
    cpu = PROCESSORS[program.name.removeprefix("driver-")]
    kernels = EmulatedKernels(program, cpu, addresses)
    with torch.inference_mode():
        yield kernels
    kernels.close()


def test_the_self_test_passes(kernels: EmulatedKernels) -> None:
    check(kernels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("is_int8", [False, True])
def test_a_rows_bits_do_not_depend_on_the_number_of_rows(
    dtype: torch.dtype, is_int8: bool, kernels: EmulatedKernels
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(100, 198, generator=generator).to(dtype)
    rows = torch.randn(17, 198, generator=generator).to(dtype)
    product = CpuLinear(weight, None, kernels, int8_weights=is_int8)
    whole = product(rows).clone()
    for count in range(1, 17):
        assert torch.equal(product(rows[:count]), whole[:count]), count
