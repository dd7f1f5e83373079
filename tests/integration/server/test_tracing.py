"""Traces, as a real receiver gets them over OTLP."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import requests
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from container.frontend.observability.tracing import traces_url
from tests.support.servers import ROOT, Server, serving, wait_for
from tests.support.services.collectors import Collector, collecting

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
PROMPT = {"inputs": "Hello", "parameters": {"max_new_tokens": 5}}
PHASES = ["queue", "prefill", "decode"]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Server]:
    settings = {
        "OTLP_ENDPOINT": collector.url,
        "OTLP_SERVICE_NAME": "my-endpoint",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with serving(tmp_path_factory.mktemp("traced") / "log", **settings) as running:
        yield running


def _call(
    server: Server, collector: Collector, number: int, path: str, body: dict
) -> tuple[requests.Response, dict[str, Span]]:
    """Call as a part of the caller's own trace; the answer and the spans of that trace."""
    trace_id = f"{number:032x}"
    carried = {"traceparent": f"00-{trace_id}-{'b' * 16}-01"}
    answer = requests.post(f"{server.url}{path}", json=body, headers=carried, timeout=60)
    wait_for(lambda: f"POST {path}" in collector.spans(trace_id), 20, lambda: server.log)
    return answer, collector.spans(trace_id)


def _attributes(span: Span) -> dict[str, object]:
    return {
        attribute.key: getattr(
            attribute.value, attribute.value.WhichOneof("value") or "string_value"
        )
        for attribute in span.attributes
    }


@pytest.mark.parametrize(
    ("number", "path", "body"),
    [
        (1, "/generate", PROMPT),
        (2, "/generate_stream", PROMPT),
        (3, "/v1/chat/completions", CHAT),
        (4, "/v1/chat/completions", CHAT | {"stream": True}),
        (5, "/invocations", PROMPT),
    ],
)
def test_a_request_continues_the_callers_trace(
    traced: Server, collector: Collector, number: int, path: str, body: dict
) -> None:
    answer, spans = _call(traced, collector, number, path, body)
    assert answer.ok
    assert set(spans) == {f"POST {path}", *PHASES}
    root, phases = spans[f"POST {path}"], [spans[name] for name in PHASES]
    assert root.parent_span_id.hex() == "b" * 16
    assert root.kind == Span.SPAN_KIND_SERVER
    assert {phase.parent_span_id for phase in phases} == {root.span_id}
    moments = [
        root.start_time_unix_nano,
        *[
            moment
            for one in phases
            for moment in (one.start_time_unix_nano, one.end_time_unix_nano)
        ],
        root.end_time_unix_nano,
    ]
    slack_ns = 2_000_000  # two clocks are read one after the other
    assert all(a <= b + slack_ns for a, b in pairwise(moments))
    attributes = _attributes(root)
    assert attributes["http.route"] == path
    assert attributes["http.response.status_code"] == 200
    assert attributes["gen_ai.usage.output_tokens"] in range(1, 6)
    assert attributes["gen_ai.usage.input_tokens"] >= 1


def test_the_service_is_named_and_the_path_is_otlps(traced: Server, collector: Collector) -> None:
    _call(traced, collector, 10, "/generate", PROMPT)
    assert {name for name, _ in collector.received} == {"my-endpoint"}
    assert collector.paths == {"/v1/traces"}


def test_a_refused_request_has_its_status_and_no_phases(
    traced: Server, collector: Collector
) -> None:
    answer, spans = _call(traced, collector, 11, "/generate", {"inputs": 1})
    assert answer.status_code == 422
    assert list(spans) == ["POST /generate"]
    assert _attributes(spans["POST /generate"])["http.response.status_code"] == 422
    assert spans["POST /generate"].status.code == Status.STATUS_CODE_UNSET


def test_a_request_without_a_trace_begins_one(traced: Server, collector: Collector) -> None:
    known = {span.trace_id for _, span in collector.received}
    requests.post(f"{traced.url}/generate", json=PROMPT, timeout=60)
    wait_for(lambda: {span.trace_id for _, span in collector.received} > known, 20)
    [root] = [
        span
        for _, span in collector.received
        if span.trace_id not in known and span.name == "POST /generate"
    ]
    assert not root.parent_span_id


def test_unsampled_traces_are_not_exported(traced: Server, collector: Collector) -> None:
    carried = {"traceparent": f"00-{'c' * 32}-{'b' * 16}-00"}
    requests.post(f"{traced.url}/generate", json=PROMPT, headers=carried, timeout=60)
    _call(traced, collector, 12, "/generate", PROMPT)
    assert not collector.spans("c" * 32)


def test_an_absent_collector_costs_no_answer(tmp_path: Path) -> None:
    settings = {"OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with serving(tmp_path / "log", **settings) as server:
        for _ in range(5):
            assert requests.post(f"{server.url}/generate", json=PROMPT, timeout=60).ok
        assert server.ping().ok


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://a:4318", "http://a:4318/v1/traces"),
        ("http://a:4317", "http://a:4318/v1/traces"),
        ("https://a/", "https://a/v1/traces"),
        ("https://a:4318/my/v1/traces", "https://a:4318/my/v1/traces"),
    ],
)
def test_where_traces_go(endpoint: str, url: str) -> None:
    assert traces_url(endpoint) == url


def test_without_an_endpoint_nothing_of_opentelemetry_is_loaded() -> None:
    code = (
        "import sys, container.frontend.wsgi;"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
