"""The embedder's numbers for Prometheus, from its last status."""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from container.errors import ServingError
from container.frontend.embedding.service import Embeddings


class EmbedderCollector(Collector):
    """Turns the embedder's last status into a gauge and counters at each scrape."""

    def __init__(self, texts: Embeddings) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        """Yield the embedder's numbers; nothing while it is away."""
        try:
            load = self._texts.load
        except ServingError:
            return
        yield GaugeMetricFamily(
            "embedder_waiting_texts", "Texts waiting for a batch", value=load.waiting_texts
        )
        yield GaugeMetricFamily(
            "embedder_fallbacks", "Reasons for being slower than possible; see /info",
            value=len(self._texts.fallbacks),
        )  # fmt: skip
        counters = {
            "embedder_batches": ("Forward passes", load.batches),
            "embedder_texts": ("Texts computed", load.texts),
            "embedder_tokens": ("Tokens computed", load.tokens),
        }
        for name, (meaning, value) in counters.items():
            yield CounterMetricFamily(name, meaning, value=value)
