"""The kernels of a decode step, by torch's profiler: those over two percent of its time."""

from functools import cache, partial
from typing import Any

from benchmarks.gpu_day.plan import Case, Scale
from benchmarks.gpu_day.results import Recorder

LEAST_SHARE = 0.02
STEPS = 8


def cases(scale: Scale) -> list[Case]:
    """Return the cases."""
    batches = (2,) if scale.is_small else (1, 64)
    return [Case(f"step at {batch}", partial(profile, scale, batch), 40) for batch in batches]


@cache
def _loaded(scale: Scale) -> Any:
    from benchmarks.gpu_day.models import llama_on, prepared, shape_for

    return prepared(llama_on(scale.device, shape_for(scale.device)), scale.device)


def profile(scale: Scale, batch: int, recorder: Recorder) -> None:
    """Profile some steps; eagerly, so that kernels have their names."""
    import random

    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiling

    from benchmarks.gpu_day.models import make_engine, synchronize
    from benchmarks.models.bench_model import random_prompt
    from container.messages.engine import SamplingParams, Submit

    engine, _ = make_engine(_loaded(scale), scale.device, max_running=batch, context=256)
    rnd = random.Random(0)
    params = SamplingParams(max_new_tokens=3 * STEPS, ignore_eos=True)
    for index in range(batch):
        engine.submit(b"", Submit(index, random_prompt(rnd, 64), params))
    for _ in range(STEPS):
        engine.step()
    activities = [ProfilerActivity.CPU]
    if scale.device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profiling(activities=activities) as profiler:
        for _ in range(STEPS):
            engine.step()
        synchronize()
    recorder.value("kernels", _table(profiler, scale.device))


def _table(profiler: Any, device: str) -> str:
    """Return name, calls and microseconds a step of each kernel, the slowest first."""
    name = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    events = [(getattr(event, name), event.count, event.key) for event in profiler.key_averages()]
    total = sum(micros for micros, _, _ in events) or 1.0
    rows = [
        f"{micros / total:6.1%} {micros / STEPS:10.1f} us {count / STEPS:7.1f} calls  {key[:90]}"
        for micros, count, key in sorted(events, reverse=True)
        if micros > LEAST_SHARE * total
    ]
    return "\n".join([f"{total / STEPS:.0f} us a step", *rows])
