"""Load the compiled CPU kernels for this processor, once for a process."""

import logging
import subprocess
import sys
from pathlib import Path

from container.errors import one_line
from container.model.fallbacks import Fallbacks
from container.model.kernels import build as build_kernels
from container.model.kernels import tile_probe
from container.model.kernels.cpu import Kernels
from container.model.kernels.processor import library_names, processor_name
from container.model.loading.kernel_selftest import check

log = logging.getLogger(__name__)

TILE_PROBE = Path(tile_probe.__file__)
TILE_PROBE_S = 30


def load_kernels(fallbacks: Fallbacks | None = None) -> Kernels | None:
    """Load and self-test the kernels; None if none can be used.

    Each library that this processor should be able to use and cannot is one of the `fallbacks`.
    """
    fallbacks = Fallbacks() if fallbacks is None else fallbacks
    names = library_names()
    instead = [*(f"the library {name}" for name in names[1:]), "PyTorch operations"]
    for name, after in zip(names, instead, strict=True):
        try:
            return _load(name)
        except Exception as error:  # no file, another source, wrong results, anything else
            fallbacks.add(
                "CPU kernels",
                f"the library {name} cannot be used ({one_line(error)}), so layers run in {after}",
                "compile them with `make serve`, or use the image, which contains them",
            )
    return None


def _load(name: str) -> Kernels:
    path = build_kernels.library(name)
    kernels = Kernels(path)
    if kernels.has_tiles:
        _try_tiles(path)
    check(kernels)
    log.info(
        "CPU kernels: compiled for %s, self-test passed; the processor is %s",
        name, processor_name(),
    )  # fmt: skip
    return kernels


def _try_tiles(path: Path) -> None:
    """Multiply by AMX in a process that may die of it: an instruction may not be allowed here."""
    command = [sys.executable, "-I", str(TILE_PROBE), str(path)]
    done = subprocess.run(command, check=False, timeout=TILE_PROBE_S, capture_output=True)
    if done.returncode != 0:
        raise OSError(f"the process that tried its tiles ended with {done.returncode}")
