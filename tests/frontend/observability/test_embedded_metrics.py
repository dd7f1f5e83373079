"""Lines of the log from which CloudWatch makes metrics."""

import json
from typing import Any

import pytest

from container.frontend.observability import embedded_metrics
from container.frontend.observability.embedded_metrics import EmbeddedMetrics
from container.settings.settings import Settings


class Ended:
    """A request that has ended, as far as its metrics go."""

    prompt_tokens, completion_tokens = 7, 3

    class prompt:  # noqa: N801
        cached_tokens = 2

    class times:  # noqa: N801
        total_s, queue_s, first_token_s, per_token_s = 0.5, 0.001, 0.2, 0.1


def _observe(metrics: EmbeddedMetrics, times: int) -> None:
    for _ in range(times):
        metrics.observe(Ended())  # type: ignore[arg-type]


def _metrics(**dimensions: str) -> tuple[EmbeddedMetrics, list[str]]:
    lines: list[str] = []
    return EmbeddedMetrics("LLM", dimensions, lines.append), lines


def test_a_line_says_what_its_values_are() -> None:
    metrics, lines = _metrics(EndpointName="chat")
    _observe(metrics, 2)
    assert lines == []
    metrics.flush()
    [line] = map(json.loads, lines)
    [directive] = line["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == "LLM"
    assert directive["Dimensions"] == [["EndpointName"]]
    assert line["EndpointName"] == "chat"
    units: dict[str, Any] = {each["Name"]: each["Unit"] for each in directive["Metrics"]}
    assert units["GeneratedTokens"] == "Count"
    assert units["TimeToFirstToken"] == "Milliseconds"
    assert line["GeneratedTokens"] == [3, 3]
    assert line["TimeToFirstToken"] == [200.0, 200.0]
    assert units.keys() == line.keys() - {"_aws", "EndpointName"}


def test_a_full_line_is_written_at_once_and_only_once() -> None:
    metrics, lines = _metrics()
    _observe(metrics, 2 * embedded_metrics.MAX_VALUES + 1)
    assert [len(json.loads(line)["RequestTime"]) for line in lines] == [100, 100]
    metrics.flush()
    metrics.flush()
    assert [len(json.loads(line)["RequestTime"]) for line in lines] == [100, 100, 1]


def test_a_line_is_written_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_metrics, "FLUSH_S", 0.0)
    metrics, lines = _metrics()
    _observe(metrics, 1)
    timer = metrics._timer
    if timer:
        timer.join(10)
    assert len(lines) == 1


def test_dimensions_are_names_and_values() -> None:
    settings = Settings.from_environ({"EMF_DIMENSIONS": "EndpointName=chat, Stage=test"})
    assert settings.observability.emf_dimensions == {"EndpointName": "chat", "Stage": "test"}
    assert settings.observability.emf_namespace is None
    for wrong in ("chat", "a=,b=c", "=x"):
        with pytest.raises(Exception, match="EMF_DIMENSIONS: must be NAME=VALUE"):
            Settings.from_environ({"EMF_DIMENSIONS": wrong})
