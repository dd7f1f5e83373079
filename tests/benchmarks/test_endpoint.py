"""`python -m benchmarks` against a real server: arrivals, APIs, data sets, reports, comparisons."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.endpoint import page
from benchmarks.endpoint.apis import Chat, EventReader, Generate
from benchmarks.endpoint.outcome import Outcome
from benchmarks.endpoint.workload import Words, read_file
from tests.support.servers import DEMO_MODEL, ROOT, Server, free_port

SMALL = ["--requests", "6", "--output-tokens", "8", "--prompt-tokens", "24", "--warm-up", "1"]


def bench(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def measured(folder: Path, *arguments: object) -> dict[str, Any]:
    path = folder / "result.json"
    run = bench(*arguments, "--json", path)
    assert run.returncode == 0, run.stderr + run.stdout
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def test_levels_of_clients_with_goal_price_and_page(server: Server, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = measured(
        tmp_path, server.url, "--clients", "1,3", *SMALL, "--goal", "first_token=60000,whole=60000",
        "--price", "2", "--html", page, "--temperature", "0",
    )  # fmt: skip
    assert (result["api"], result["goal"]) == ("chat", {"first_token": 60000, "whole": 60000})
    assert result["model"]
    assert [level["name"] for level in result["levels"]] == ["1 client", "3 clients"]
    for level in result["levels"]:
        assert (level["requests"], level["failed"]) == (6, 0)
        assert 6 <= level["output_tokens"] <= 6 * 8
        assert level["prompt_tokens"] > 6 * 10
        assert (
            level["whole_ms"]["p99"] >= level["whole_ms"]["p50"] >= level["first_token_ms"]["p50"]
        )
        assert level["goodput"]["share"] == 1
        cost = level["cost"]
        rate = level["output_tokens_per_s"]
        assert cost["tokens_per_s_per_dollar_an_hour"] == pytest.approx(rate / 2, rel=0.01)
        assert cost["dollars_per_million_tokens"] == pytest.approx(2e6 / 3600 / rate, rel=0.01)
        assert len(level["samples"]["first_token_ms"]) == 6
    text = page.read_text()
    assert text.count("<svg") == 8
    assert "http" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL).replace(
        server.url, ""
    ), "the page needs nothing from elsewhere"


@pytest.mark.parametrize("api", ["completions", "generate"])
def test_other_apis(server: Server, tmp_path: Path, api: str) -> None:
    result = measured(tmp_path, f"{server.url}/v1", "--api", api, "--clients", "2", *SMALL)
    [level] = result["levels"]
    assert (result["api"], level["failed"]) == (api, 0)
    assert level["output_tokens"] > 0
    assert level["prompt_tokens"] > 0


def test_random_arrivals_share_prefixes(server: Server, tmp_path: Path) -> None:
    prefixes = ["--prefix-tokens", "120", "--prefix-groups", "2"]
    result = measured(
        tmp_path, server.url, "--rate", "50", *SMALL, *prefixes, "--tokenizer", DEMO_MODEL
    )
    [level] = result["levels"]
    due = level["samples"]["due_s"]
    assert (level["name"], len(due), due) == ("50 requests/s", 6, sorted(due))
    assert level["cached_tokens"] > 0
    assert "2 prefixes of 120" in result["workload"]


TRACES = {
    "mooncake.jsonl": [
        {"timestamp": 1000, "input_length": 520, "output_length": 4, "hash_ids": [7]},
        {"timestamp": 1150, "input_length": 20, "output_length": 3, "hash_ids": []},
    ],
    "own.jsonl": [{"at": 0.2, "prompt": "b", "max_tokens": 3}, {"at": 0.05, "prompt": "a"}],
}


@pytest.mark.parametrize("name", [*TRACES, "azure.csv"])
def test_a_trace_has_times_and_sizes(server: Server, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "azure.csv":
        path.write_text(
            "TIMESTAMP,ContextTokens,GeneratedTokens\n"
            "2023-11-16 18:17:03.9799600,30,4\n2023-11-16 18:17:04.1319600,12,2\n"
        )
    else:
        path.write_text("\n".join(map(json.dumps, TRACES[name])))
    [level] = measured(tmp_path, server.url, "--trace", path, "--output-tokens", "3")["levels"]
    assert (level["name"], level["requests"], level["failed"]) == ("trace", 2, 0)
    due = level["samples"]["due_s"]
    assert due[1] - due[0] == pytest.approx(0.15, abs=0.005)


DATA = {
    "guidellm": {"prompt": "What is deep learning?", "output_tokens_count": 3},
    "vllm": {"prompt": "What is deep learning?", "output_tokens": 3},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]
    },
    "messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3},
    "separators that end no line": {"prompt": "Hi\u2028there\x85", "output_tokens": 3},
    "sharegpt, nothing asked": {"conversations": [{"from": "gpt", "value": "Yo"}]},
    "sharegpt, nothing at all": {"conversations": []},
}


def test_data_sets_of_other_tools(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in DATA.values()))
    as_list = tmp_path / "data.json"
    as_list.write_text(json.dumps([*DATA.values()]))
    for file in (path, as_list):
        [level] = measured(
            tmp_path, server.url, "--clients", "2", "--data", file, "--requests", "8",
            "--output-tokens", "3",
        )["levels"]  # fmt: skip
        assert (level["requests"], level["failed"]) == (8, 0)
        assert level["output_tokens"] <= 8 * 3


def test_two_reports_are_compared(server: Server, tmp_path: Path) -> None:
    page = tmp_path / "before.html"
    measured(tmp_path, server.url, "--clients", "1", *SMALL, "--label", "old", "--html", page)
    after = tmp_path / "result.json"
    slower = json.loads(after.read_text()) | {"label": "new"}
    slower["levels"][0]["output_tokens_per_s"] /= 2
    slower["workload"] = "another"
    after.write_text(json.dumps(slower))
    target = tmp_path / "comparison.html"
    run = bench("--compare", page, after, "--html", target)
    assert run.returncode == 0, run.stderr
    text = target.read_text()
    assert '<span class="bad">0.500</span>' in text
    assert "differ in their workload" in text
    assert "<th>old</th><th>new</th>" in text


def test_failures_are_counted_by_their_reason(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    page = tmp_path / "page.html"
    run = bench(
        server.url, *SMALL, "--body", '{"temperature": -1}', "--json", path, "--html", page,
        "--goal", "first_token=9000", "--price", "1",
    )  # fmt: skip
    assert run.returncode == 1, run.stderr
    [level] = json.loads(path.read_text())["levels"]
    assert level["failed"] == 6
    assert level["goodput"]["share"] == 0
    assert "`temperature`" in page.read_text()
    [(reason, count)] = level["errors"].items()
    assert count == 6
    assert "400" in reason
    assert "`temperature`" in reason


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["http://127.0.0.1:{port}"], "refused"),
        (["http://127.0.0.1:1", "--goal", "speed=3"], "these are: first_token, per_token, whole"),
        (["http://127.0.0.1:1", "--clients", "0"], "above 0"),
        ([], "TARGET"),
        (["an-endpoint", "--api", "generate", "--ignore-eos"], "TGI's API has no such field"),
        (["--compare", "/nowhere/a", "/nowhere/b"], "/nowhere/a"),
    ],
)
def test_errors_are_one_line(arguments: list[str], words: str) -> None:
    run = bench(*(argument.format(port=free_port()) for argument in arguments))
    assert run.returncode == 2
    assert words in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"question_id": 3, "at": 1}', "has none of prompt"),
        ('{"prompt": "b"}', "has no time"),
        ('"b"', "is not a JSON object"),
        ('{"conversations": ["b"]}', "string indices"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path: Path, row: str, words: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"prompt": "a", "at": 0}}\n{row}\n')
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}, row 2: {words}"):
        read_file(path, Words(), output_tokens=3)


def test_the_report_escapes_error_texts(tmp_path: Path) -> None:
    result = {"levels": [], "target": "<!--<script></script>"}
    path = tmp_path / "page.html"
    path.write_text(page.render("x", [], result))
    assert page.read_result(path) == result
    assert path.read_text().count("<script") == 1


def test_answers_that_do_not_stream_are_read_too() -> None:
    whole = {"choices": [{"message": {"content": "Hi"}}], "usage": {"completion_tokens": 3}}
    for api, body in ((Chat(), whole), (Generate(), [{"generated_text": "Hi"}])):
        reader, outcome = EventReader(), Outcome(0, 0)
        raw = json.dumps(body).encode()
        events = [*reader.feed(raw[:9]), *reader.feed(raw[9:]), *reader.finish()]
        assert [api.read(event, outcome) for event in events] == [True]
        assert outcome.tokens == (3 if api.__class__ is Chat else 0)
