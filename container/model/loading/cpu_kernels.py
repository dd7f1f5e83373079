"""Load the compiled CPU kernels for this processor, once for a process."""

import logging

import torch

from container.model.kernels import build as build_kernels
from container.model.kernels.cpu import Kernels
from container.model.loading.kernel_selftest import check

log = logging.getLogger(__name__)


def library_name() -> str:
    """Return the best instruction set that build.py knows and this processor has."""
    name = torch.backends.cpu.get_cpu_capability().lower()
    if name == "avx512" and torch.cpu.get_capabilities()["avx512_bf16"]:
        name = "avx512_bf16"
    return name if name in build_kernels.TARGETS else "default"


def processor_name() -> str:
    """Name the processor by what decides the kernels: `amx`, `avx512_bf16`, `avx2`, `neon` ..."""
    if torch.cpu.get_capabilities().get("amx_tile", False):
        return "amx"
    return "neon" if build_kernels.MACHINE in ("aarch64", "arm64") else library_name()


def load_kernels() -> Kernels | None:
    """Load and self-test the kernels; log the reason and return None where they cannot be used."""
    name = library_name()
    try:
        kernels = Kernels(build_kernels.library(name))
        check(kernels)
    except (OSError, AttributeError) as error:
        log.warning("CPU kernels unavailable, falling back to PyTorch ops (slower): %s", error)
        return None
    log.info(
        "CPU kernels: compiled for %s, self-test passed; the processor is %s",
        name, processor_name(),
    )  # fmt: skip
    return kernels
