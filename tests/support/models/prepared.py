"""Models prepared as the server prepares them, with the compiled kernels of this processor."""

from functools import cache
from typing import Any

import torch
from transformers import PreTrainedModel

from container.model.kernels.cpu import Kernels
from container.model.layers.cpu_linear import LinearFactory
from container.model.loaded_model import LoadedModel
from container.model.loading import prepare as loading
from container.model.loading.cpu_kernels import load_kernels

# The largest error of a kernel in tests, as a fraction of the largest number.
TOLERANCE = {torch.bfloat16: 0.02, torch.float32: 1e-5}


@cache
def cpu_kernels() -> Kernels:
    """Load the kernels once for all tests; they must have been compiled."""
    kernels = load_kernels()
    assert kernels is not None, "the kernels are not compiled: run make test-server"
    return kernels


def linears() -> LinearFactory:
    """Make linear layers as the server does."""
    return LinearFactory(cpu_kernels())


def prepare(
    module: PreTrainedModel, dtype: torch.dtype, device: torch.device, **options: Any
) -> LoadedModel:
    """Prepare a model with the kernels, unless `cpu_kernels` says otherwise."""
    return loading.prepare(module, dtype, device, **{"cpu_kernels": cpu_kernels()} | options)
