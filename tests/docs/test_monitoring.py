"""The dashboard and the alerting rules: every metric in them is one that a server has."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "docs" / "monitoring"
# Suffixes of a histogram's series.
SUFFIXES = ("_bucket", "_sum", "_count")
METRIC = re.compile(r"\b(?:tgi|engine|embedder)_[a-z_]+")


def _known() -> set[str]:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    kinds = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", page, re.M))
    buckets = {name + suffix for name in kinds if kinds[name] == "histogram" for suffix in SUFFIXES}
    return {name for name in kinds if kinds[name] != "histogram"} | buckets


def _dashboard() -> dict:
    return json.loads((MONITORING / "grafana.json").read_text())


def _rules() -> list[dict]:
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _queries() -> Iterator[tuple[str, str]]:
    for panel in _dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield f"panel {panel['title']}", target["expr"]
    for rule in _rules():
        yield f"alert {rule['alert']}", rule["expr"]


@pytest.mark.parametrize(("name", "query"), [*_queries()], ids=lambda text: text[:40])
def test_every_metric_of_a_query_exists(name: str, query: str) -> None:
    used = set(METRIC.findall(query))
    assert used, f"{name} asks for nothing"
    assert used - _known() == set()
    for opening, closing in ("()", "{}", "[]"):
        assert query.count(opening) == query.count(closing), name


def test_quantiles_are_of_buckets_by_le() -> None:
    quantiles = [query for _, query in _queries() if "histogram_quantile" in query]
    assert len(quantiles) > 10
    assert all("_bucket" in query and re.search(r"by \([^)]*\ble\b", query) for query in quantiles)


def test_panels_lie_beside_each_other() -> None:
    places: set[tuple[int, int]] = set()
    panels = _dashboard()["panels"]
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not places & cells, panel["title"]
        assert max(x for x, _ in cells) < 24
        places |= cells
    numbers = [panel["id"] for panel in panels]
    assert len(numbers) == len(set(numbers))


def test_every_metric_but_a_few_is_on_the_dashboard() -> None:
    shown = {name for _, query in _queries() for name in METRIC.findall(query)}
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    hidden = {
        name for name in re.findall(r"^\| `(\w+)`", page, re.M)
        if name not in shown and f"{name}_bucket" not in shown
    }  # fmt: skip
    assert len(hidden) <= 20, hidden


def test_alerts_say_what_to_do_and_their_pages_exist() -> None:
    for rule in _rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "remedy"}
        for page in re.findall(r"docs/[\w/-]+\.md", rule["annotations"]["remedy"]):
            assert (ROOT / page).is_file()


def test_the_page_of_events_has_those_of_a_died_engine() -> None:
    sys.path.insert(0, str(ROOT / "docs" / "site"))  # as MkDocs does for its hooks
    try:
        page = importlib.import_module("events").events_page()
    finally:
        sys.path.pop(0)
    errors = page.split("## Warning")[0]
    assert "| …: died (…); restart … of … within … s | `container.lifecycle.child` |" in errors
    assert "%s" not in page
    assert all(line.count(" | ") == 1 for line in page.splitlines() if line.startswith("| …"))
