"""The Grafana dashboard in docs/monitoring, from a table of panels; `make docs` writes it."""

import json
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]
WHERE = '{job=~"$job",instance=~"$instance"}'
SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDTH, HEIGHT, COLUMNS = 8, 8, 24
QUANTILES = (0.5, 0.9, 0.99)
# Rows of panels: title, unit in Grafana's words, meaning, and queries by their legends.
Panel = tuple[str, str, str, dict[str, str]]


def _rate(name: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({name}{WHERE}[$__rate_interval]))"


def _sum(name: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} ({name}{WHERE})"


def _quantiles(name: str) -> dict[str, str]:
    return {
        f"p{100 * share:.0f}": f"histogram_quantile({share}, {_rate(f'{name}_bucket', 'le')})"
        for share in QUANTILES
    }


ROWS: dict[str, list[Panel]] = {
    "Requests": [
        ("Requests", "reqps", "Answered, failed, and left by their clients.",
         {"received": _rate("tgi_request_count"), "answered": _rate("tgi_request_success"),
          "failed": _rate("tgi_request_failure"), "left": _rate("tgi_request_aborted")}),
        ("Failures by kind", "reqps", "`overloaded` is a 429: more replicas (docs/scaling.md).",
         {"{{err}}": _rate("tgi_request_failure", "err")}),
        ("Running and waiting", "short", "Sequences; a queue that stays means too few replicas.",
         {"running": _sum("tgi_batch_current_size"), "waiting": _sum("tgi_queue_size")}),
        ("Time to first token", "s", "From the request to its first token.",
         _quantiles("tgi_request_first_token_duration")),
        ("Between tokens", "s", "Between two events of a stream.",
         _quantiles("tgi_request_between_tokens_duration")),
        ("Whole request", "s", "From the request to its last token.",
         _quantiles("tgi_request_duration")),
        ("In the queue", "s", "Before the first step.", _quantiles("tgi_request_queue_duration")),
        ("Cut by a deadline", "reqps", "Answers that REQUEST_DEADLINE cut.",
         {"cut": _rate("tgi_request_deadline_exceeded")}),
        ("Prompts and answers", "short", "Tokens of a request, at the 90th percentile.",
         {"prompt": _quantiles("tgi_request_input_length")["p90"],
          "answer": _quantiles("tgi_request_generated_tokens")["p90"]}),
    ],
    "Engine": [
        ("Tokens", "short", "A second: generated, prompts computed, prompts found in the cache.",
         {"generated": _rate("engine_decode_tokens_total"),
          "prompts": _rate("engine_prefill_tokens_total"),
          "cached": _rate("engine_cached_tokens_total")}),
        ("KV blocks", "short", "Used up, sequences wait or are preempted.",
         {"in use": _sum("engine_blocks_used"), "known prefixes": _sum("engine_blocks_cached"),
          "all": _sum("engine_blocks_total"), "copies on the host": _sum("engine_blocks_on_host")}),
        ("Prefix hits", "percentunit", "The share of prompt tokens found in the KV cache.",
         {"hits": f"{_rate('engine_cached_tokens_total')} / ({_rate('engine_cached_tokens_total')}"
                  f" + {_rate('engine_prefill_tokens_total')})"}),
        ("Preemptions", "short", "Sequences sent back to waiting, a second; each computes anew.",
         {"preempted": _rate("engine_preemptions_total")}),
        ("Time in the model", "s", "Seconds of a step in the model.",
         _quantiles("tgi_batch_forward_duration")),
        ("Sequences in a step", "short", "The batch.", _quantiles("tgi_batch_next_size")),
        ("Accepted drafts", "percentunit", "With SPECULATE: guessed tokens that came true.",
         {"accepted": f"{_rate('engine_accepted_tokens_total')} / "
                      f"{_rate('engine_drafted_tokens_total')}"}),
        ("State slots", "short", "Of recurrent models.",
         {"in use": _sum("engine_state_slots_used"), "all": _sum("engine_state_slots_total"),
          "snapshots": _sum("engine_state_snapshots")}),
        ("Slow paths", "short", "More than 0: /info says why (docs/models.md).",
         {"{{instance}}": _sum("engine_fallbacks", "instance")}),
    ],
    "Adapters and embeddings": [
        ("Requests by adapter", "reqps", "An empty name is the base model.",
         {"{{adapter}}": _rate("tgi_adapter_request_count", "adapter")}),
        ("Tokens by adapter", "short", "Generated, a second.",
         {"{{adapter}}": _rate("tgi_adapter_generated_tokens", "adapter")}),
        ("Embeddings", "short", "Texts and tokens a second, and texts that wait.",
         {"texts": _rate("embedder_texts_total"), "tokens": _rate("embedder_tokens_total"),
          "waiting": _sum("embedder_waiting_texts")}),
    ],
}  # fmt: skip


def dashboard() -> Json:
    """Return the dashboard as Grafana imports it."""
    variables = [
        {"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus"},
        _label_variable("job", "tgi_queue_size"),
        _label_variable("instance", 'tgi_queue_size{job=~"$job"}'),
    ]
    return {
        "title": "SageMaker LLM container",
        "uid": "sagemaker-llm-container",
        "tags": ["llm"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables},
        "panels": list(_panels()),
    }


def dashboard_text() -> str:
    """Return the file's content."""
    return json.dumps(dashboard(), indent=1) + "\n"


def _label_variable(name: str, series: str) -> Json:
    query = {"query": f"label_values({series}, {name})", "refId": name}
    choice = {"multi": True, "includeAll": True, "allValue": ".*", "refresh": 2}
    current = {"text": "All", "value": "$__all"}
    return {"name": name, "type": "query", "datasource": SOURCE, "query": query,
            "current": current} | choice  # fmt: skip


def _panels() -> Iterator[Json]:
    number, top = 0, 0
    for row, panels in ROWS.items():
        number += 1
        at = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
        yield {"id": number, "type": "row", "title": row, "gridPos": at, "panels": []}
        top += 1
        for index, panel in enumerate(panels):
            number += 1
            x, y = index * WIDTH % COLUMNS, top + index * WIDTH // COLUMNS * HEIGHT
            yield _panel(number, {"x": x, "y": y, "w": WIDTH, "h": HEIGHT}, panel)
        top += -(-len(panels) * WIDTH // COLUMNS) * HEIGHT


def _panel(number: int, at: Json, panel: Panel) -> Json:
    title, unit, meaning, queries = panel
    targets = [
        {"refId": chr(ord("A") + index), "expr": query, "legendFormat": legend,
         "datasource": SOURCE}
        for index, (legend, query) in enumerate(queries.items())
    ]  # fmt: skip
    defaults = {"unit": unit, "min": 0, "custom": {"fillOpacity": 10, "showPoints": "never"}}
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "description": meaning,
        "datasource": SOURCE,
        "gridPos": at,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"},
                    "tooltip": {"mode": "multi"}},
        "targets": targets,
    }  # fmt: skip
