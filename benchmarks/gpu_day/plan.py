"""The parts of a GPU day, the most valuable first, and how long each may take."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.gpu_day.results import Recorder

TOTAL_S = 540.0


@dataclass(frozen=True, slots=True)
class Scale:
    """Where the cases run: on a GPU in full, or on a CPU with the smallest shapes."""

    device: str

    @property
    def is_small(self) -> bool:
        """Whether the shapes are the smallest."""
        return self.device == "cpu"

    @property
    def patience(self) -> float:
        """By how much limits of time are longer: a CPU in a test is slow, and often busy."""
        return 4.0 if self.is_small else 1.0


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that is tried, and the seconds that it may take."""

    name: str
    run: Callable[[Recorder], None]
    limit_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Part:
    """A module with `cases(scale)`, run in another process, with its environment."""

    name: str
    title: str
    module: str
    limit_s: float
    environment: Mapping[str, str] = field(default_factory=dict)


PARTS = (
    Part("device", "Imports, the device, the kernels' self-tests",
         "benchmarks.gpu_day.parts.device", 60),
    Part("triton", "Triton kernels beside torch's operations",
         "benchmarks.gpu_day.parts.triton_cases", 75),
    Part("theorem", "Greedy output equals generate's, with overlap, graphs, preemption, offload",
         "benchmarks.gpu_day.parts.theorem", 85),
    Part("server", "The whole server", "benchmarks.gpu_day.parts.server", 90),
    Part("speed", "Speed beside the device's limits and transformers",
         "benchmarks.gpu_day.parts.speed", 135),
    Part("quantized", "Weights and caches of fewer bits",
         "benchmarks.gpu_day.parts.quantized", 50),
    Part("profile", "Kernels of a decode step",
         "benchmarks.gpu_day.parts.step_profile", 40),
)  # fmt: skip
