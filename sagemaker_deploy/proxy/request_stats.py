"""The log line and the metrics of one request."""

import json
import logging
import time
from dataclasses import dataclass, field

from sagemaker_deploy.proxy.metrics import Metrics
from sagemaker_deploy.proxy.plans import Api
from sagemaker_deploy.proxy.reading import Usage

log = logging.getLogger(__name__)
DISCONNECTED_STATUS = 499


@dataclass(slots=True)
class RequestStats:
    """The data of one request for its log line and the metrics."""

    path: str
    api: Api
    request_id: str
    owner: str = ""
    model: str = ""
    status: int = DISCONNECTED_STATUS
    kind: str = "whole"
    num_retries: int = 0
    error: str = ""
    started: float = field(default_factory=time.monotonic)
    first_s: float | None = None
    usage: Usage = field(default_factory=Usage)

    def feed(self, part: bytes) -> None:
        """Note a part that the client gets."""
        if self.first_s is None:
            self.first_s = time.monotonic() - self.started
        self.usage.feed(part)

    def add_retry(self) -> None:
        """Count a retry."""
        self.num_retries += 1


def finish(stats: RequestStats, metrics: Metrics) -> None:
    """Write the log line of an answered request, and count the request."""
    seconds = time.monotonic() - stats.started
    labels = (("model", stats.model), ("api", stats.api), ("status", str(stats.status)))
    metrics.requests[labels] += 1
    metrics.seconds.observe(stats.model, seconds)
    if stats.first_s is not None:
        metrics.first_seconds.observe(stats.model, stats.first_s)
    prompt, completion = stats.usage.counts()
    for kind, count in (("prompt", prompt), ("completion", completion)):
        metrics.tokens[("model", stats.model), ("kind", kind)] += count
    first = f" first_s={stats.first_s:.3f}" if stats.first_s is not None else ""
    log.info(
        "proxy: answered %s: model=%s status=%d kind=%s seconds=%.3f%s prompt_tokens=%d "
        "completion_tokens=%d retries=%d key=%s id=%s%s",
        stats.path, stats.model or "-", stats.status, stats.kind, seconds, first, prompt,
        completion, stats.num_retries, stats.owner or "-", stats.request_id,
        f" error={json.dumps(stats.error[:300])}" if stats.error else "",
    )  # fmt: skip
