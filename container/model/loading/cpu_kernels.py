"""Load the compiled CPU kernels for this processor, once for a process."""

import logging

from container.errors import one_line
from container.model.fallbacks import Fallbacks
from container.model.kernels import build as build_kernels
from container.model.kernels.cpu import Kernels
from container.model.kernels.processor import library_name, processor_name
from container.model.loading.kernel_selftest import check

log = logging.getLogger(__name__)


def load_kernels(fallbacks: Fallbacks | None = None) -> Kernels | None:
    """Load and self-test the kernels; None, and one of the `fallbacks`, if they cannot be used."""
    fallbacks = Fallbacks() if fallbacks is None else fallbacks
    name = library_name()
    try:
        kernels = Kernels(build_kernels.library(name))
        check(kernels)
    except Exception as error:  # no such file, another source, wrong results, anything in a test
        fallbacks.add(
            "CPU kernels",
            f"the library {name} cannot be used ({one_line(error)}), so layers run in PyTorch "
            "operations",
            "compile them with `make serve`, or use the image, which contains them",
        )
        return None
    log.info(
        "CPU kernels: compiled for %s, self-test passed; the processor is %s",
        name, processor_name(),
    )  # fmt: skip
    return kernels
