"""Load the compiled CPU kernels for this processor, once for a process."""

import logging

from container.model.kernels import build as build_kernels
from container.model.kernels.cpu import Kernels
from container.model.kernels.processor import library_name, processor_name
from container.model.loading.kernel_selftest import check

log = logging.getLogger(__name__)


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
