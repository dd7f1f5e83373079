"""The engine's numbers as Prometheus metrics, from its last status: TGI's names and our own.

TGI's `tgi_batch_concat`, `..._filter_duration` and `..._decode_duration` are of phases that this
engine does not have.
"""

from collections.abc import Callable, Iterable
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.samples import Sample

from container.errors import ServingError
from container.frontend.generation.service import Service
from container.messages.engine import (
    BATCH_SIZES,
    STEP_SECONDS,
    Distribution,
    EngineLoad,
    Status,
    StepTotals,
)


class EngineCollector:
    """Turns the engine's last status into metrics at each scrape."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        """Yield the engine's numbers; nothing while it is away."""
        try:
            status = self._service.status
        except ServingError:
            return
        yield from _gauges(status)
        yield from _counters(status.load)
        totals_by_phase = {"prefill": status.load.steps.prefill, "decode": status.load.steps.decode}
        yield from _steps(totals_by_phase)
        sizes = HistogramMetricFamily("tgi_batch_next_size", "Sequences in a step")
        _add(sizes, [], BATCH_SIZES, status.load.steps.batch_sizes)
        yield sizes


def _gauges(status: Status) -> Iterable[Metric]:
    load = status.load
    info = status.info
    capacity = info.cache_tokens if info is not None else 0
    fallbacks = len(info.fallbacks) if info is not None else 0
    gauges = {
        "tgi_queue_size": ("Sequences waiting for their first step", load.waiting),
        "tgi_batch_current_size": ("Sequences running", load.running),
        "tgi_batch_current_max_tokens": ("Tokens the running ones may have", load.max_tokens),
        "tgi_batch_max_total_tokens": ("Tokens that the KV cache holds", capacity),
        "engine_blocks_used": ("KV cache blocks in use", load.blocks_used),
        "engine_blocks_cached": ("KV cache blocks that hold a known prefix", load.blocks_cached),
        "engine_blocks_on_host": ("Blocks of which the host has a copy", load.blocks_on_host),
        "engine_blocks_total": ("KV cache blocks", load.blocks_total),
        "engine_state_slots_used": ("State slots in use", load.state_slots_used),
        "engine_state_slots_total": ("State slots of a recurrent model", load.state_slots_total),
        "engine_state_snapshots": ("States kept with a known prefix", load.state_snapshots),
        "engine_fallbacks": ("Reasons for being slower than possible; see /info", fallbacks),
    }
    for name, (meaning, value) in gauges.items():
        yield GaugeMetricFamily(name, meaning, value=value)


def _counters(load: EngineLoad) -> Iterable[Metric]:
    steps = load.steps
    counters = {
        "engine_steps": ("Forward passes", steps.prefill.done + steps.decode.done),
        "engine_preemptions": ("Sequences sent back to waiting", load.preemptions),
        "engine_prefill_tokens": ("Prompt tokens computed", steps.prefill_tokens),
        "engine_cached_tokens": ("Prompt tokens found in the KV cache", load.cached_tokens),
        "engine_restored_tokens": ("Of these, copied back from the host", load.restored_tokens),
        "engine_drafted_tokens": ("Tokens guessed by SPECULATE", load.drafted_tokens),
        "engine_accepted_tokens": ("Guessed tokens that came true", load.accepted_tokens),
        "engine_decode_tokens": ("Tokens computed one by one", steps.decode_tokens),
    }
    for name, (meaning, value) in counters.items():
        yield CounterMetricFamily(name, meaning, value=value)


def _steps(totals_by_phase: dict[str, StepTotals]) -> Iterable[Metric]:
    counts: dict[str, tuple[str, Callable[[StepTotals], int]]] = {
        "tgi_batch_inference_count": ("Steps ended, well or not", lambda step: step.begun),
        "tgi_batch_inference_success": ("Steps done", lambda step: step.done),
        "tgi_batch_inference_failure": ("Steps that failed", lambda step: step.begun - step.done),
    }
    for name, (meaning, read) in counts.items():
        # TGI's counters have no `_total`, which a counter here would get.
        metric = Metric(name, meaning, "unknown")
        metric.samples = [
            Sample(name, {"method": kind}, read(step)) for kind, step in totals_by_phase.items()
        ]
        yield metric
    durations: dict[str, tuple[str, Callable[[StepTotals], Distribution]]] = {
        "tgi_batch_inference_duration": ("Seconds of a step", lambda step: step.step_seconds),
        "tgi_batch_forward_duration": ("Seconds in the model", lambda step: step.forward_seconds),
    }
    for name, (meaning, read_seconds) in durations.items():
        histogram = HistogramMetricFamily(name, meaning, labels=["method"])
        for kind, step in totals_by_phase.items():
            _add(histogram, [kind], STEP_SECONDS, read_seconds(step))
        yield histogram


def _add(
    family: HistogramMetricFamily,
    labels: list[str],
    bounds: tuple[float, ...],
    distribution: Distribution,
) -> None:
    counts = distribution.counts or [0] * (len(bounds) + 1)
    names = [*map(str, bounds), "+Inf"]
    buckets = list(zip(names, map(float, accumulate(counts)), strict=True))
    family.add_metric(labels, buckets, sum_value=distribution.total)
