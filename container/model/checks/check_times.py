"""How long the checks of a start took, and apart from them the conversion that they check."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class CheckTimes:
    """Wall-clock seconds of a start's checks: in single layers, and in the whole model.

    `converting_s` are those of packing weights and replacing layers, without checks.
    """

    layers_s: float = 0.0
    whole_s: float = 0.0
    converting_s: float = 0.0

    @property
    def total_s(self) -> float:
        """All seconds of checks."""
        return self.layers_s + self.whole_s

    @contextmanager
    def of_layers(self) -> Iterator[None]:
        """Add the time of this context, in which single layers run."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.layers_s += time.perf_counter() - started

    @contextmanager
    def of_whole(self) -> Iterator[None]:
        """Add the time of this context, in which the model runs, but not that of its layers."""
        started, before = time.perf_counter(), self.layers_s
        try:
            yield
        finally:
            self.whole_s += time.perf_counter() - started - (self.layers_s - before)
