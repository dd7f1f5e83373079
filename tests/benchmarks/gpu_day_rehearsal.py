"""The parts of a GPU day without servers, in one process: a test imports torch once for all."""

from benchmarks.gpu_day.parts import (
    device,
    quantized,
    speed,
    step_profile,
    theorem,
    triton_cases,
)
from benchmarks.gpu_day.plan import Case, Scale


def cases(scale: Scale) -> list[Case]:
    parts = (device, triton_cases, theorem, speed, quantized, step_profile)
    return [case for part in parts for case in part.cases(scale)]
