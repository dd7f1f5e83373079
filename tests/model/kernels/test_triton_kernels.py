"""The kernels in Triton: that they are right when interpreted, and compile for GPUs.

Who runs kernels is settled when Triton is imported, which torch does before any test can ask for
the interpreter: so what it runs, in triton_cases.py, has a process of its own.
"""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction

from container.model.kernels import triton_attention
from tests.model.kernels.triton_interpreter_cases import (
    BF16,
    E4M3,
    F16,
    Case,
    Decodes,
    launch_all,
)

CASES = Path(__file__).with_name("triton_interpreter_cases.py")
NUM_CASES = 66
# What a block may have on the smallest of these GPUs (Ampere but for the A100, and Ada), in bytes.
SHARED_MEMORY = 99 * 1024


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kernels_are_right_when_interpreted() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=CASES.parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= NUM_CASES
    assert "skipped" not in done.stdout


class Compiler:
    """Stands for a GPU's driver, and keeps what was compiled for its compute capability."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)
        self.compiled: dict[int, Any] = {}

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return -self.target.arch  # no other device may have this number

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture(params=[80, 89, 90, 100])
def compiler(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Compiler:
    """Kernels are compiled for a GPU, and not launched."""
    made = Compiler(request.param)
    launch = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        made.compiled[id(kernel)] = kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(triton.runtime.driver, "_active", made)
    return made


@pytest.mark.parametrize(
    "case",
    [
        Case(dim=128, dtype=BF16),
        Case(heads=6, dim=80, dtype=F16, cache_dtype=E4M3, window=100),
        Case(heads=2, dim=256, softcap=30.0),
    ],
    ids=str,
)
def test_kernels_compile_once_for_all_steps(
    compiler: Compiler, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case.cache_dtype == E4M3:  # as on that GPU, not as on this machine's
        mantissa = 0 if compiler.target.arch >= 89 else triton_attention.MANTISSAS[E4M3]
        monkeypatch.setattr(triton_attention, "_read_as", lambda cache: mantissa)
    for rows in (2, 1, 3, 16, 32):
        launch_all(case, rows)
        assert len(compiler.compiled) == 6
    _assert_fits(compiler)


@pytest.mark.parametrize("heads", [16, 128])
def test_decodes_of_latents_compile_once(compiler: Compiler, heads: int) -> None:
    case = Case(heads=heads, kv_heads=1, dim=576, value_dim=512, dtype=BF16, is_latent=True)
    for rows in (2, 1, 16):
        Decodes(replace(case, lens=(7 * rows,) * rows)).got()
        assert len(compiler.compiled) == 2
    _assert_fits(compiler)


def _assert_fits(compiler: Compiler) -> None:
    for kernel in compiler.compiled.values():
        assert kernel.metadata.shared <= SHARED_MEMORY
        assert kernel.asm["cubin"]
