"""Data capture and logs of requests, and how their answers are compared."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from sagemaker_deploy.errors import ConfigError
from sagemaker_deploy.replay.compare import compare, compare_texts
from sagemaker_deploy.replay.records import Recorded, parse_line, read_records
from sagemaker_deploy.replay.report import make_report, text
from sagemaker_deploy.replay.send import Replayed, with_seed

CHAT = {"messages": [{"role": "user", "content": "a"}]}


def _chat(content: str) -> dict[str, Any]:
    return {"id": "1", "choices": [{"index": 0, "message": {"content": content}}]}


def _call(call_id: str) -> dict[str, Any]:
    call = {"id": call_id, "function": {"name": "f", "arguments": "{}"}}
    return {"choices": [{"index": 0, "message": {"tool_calls": [call]}}]}


def _capture(data: str, encoding: str, output: str | None = None, **metadata: Any) -> str:
    captured = {"endpointInput": {"data": data, "encoding": encoding, "mode": "INPUT"}}
    if output is not None:
        captured["endpointOutput"] = {"data": output, "encoding": "JSON", "mode": "OUTPUT"}
    line = {"captureData": captured, "eventMetadata": {"eventId": "e-1"} | metadata}
    return json.dumps(line | {"eventVersion": "0"})


def test_data_capture_in_both_encodings() -> None:
    body = json.dumps(CHAT)
    record = parse_line("f:1", _capture(body, "JSON", json.dumps(_chat("yes"))))
    assert (record.name, record.body, record.answer) == ("e-1", CHAT, _chat("yes"))
    coded = base64.b64encode(body.encode()).decode()
    attributes = ["a=b", "route=/v1/messages;c=d"]
    record = parse_line("f:1", _capture(coded, "BASE64", customAttributes=attributes))
    assert (record.body, record.answer, record.path) == (CHAT, None, "/v1/messages")


@pytest.mark.parametrize(
    ("stream", "joined"),
    [
        (
            'data: {"choices": [{"index": 0, "delta": {"content": "ye"}}]}\n\n'
            'data: {"choices": [{"index": 0, "delta": {"content": "s"}}]}\n\ndata: [DONE]\n\n',
            "yes",
        ),
        (
            'data:{"token": {"text": "ye"}}\n\n'
            'data:{"token": {"text": "s"}, "generated_text": "yes"}\n\n',
            "yes",
        ),
        (
            'event: message_start\ndata: {"type": "message_start", "message": {}}\n\n'
            'data: {"type": "content_block_start", "index": 0, "content_block": {"text": ""}}\n\n'
            'data: {"type": "content_block_delta", "index": 0, "delta": {"text": "yes"}}\n\n',
            "yes",
        ),
    ],
)
def test_captured_streams_are_joined(stream: str, joined: str) -> None:
    record = parse_line("f:1", _capture(json.dumps(CHAT), "JSON", stream))
    assert compare(record.answer, joined).is_exact


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "{}", '{"body": 1}', '{"captureData": {}}', _capture("1", "JSON"),
     _capture("text", "CSV"), _capture("%", "BASE64")],
)  # fmt: skip
def test_lines_of_other_forms_are_named(line: str) -> None:
    with pytest.raises(ConfigError, match="file:7"):
        parse_line("file:7", line)


def test_files_folders_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "2026").mkdir()
    (tmp_path / "2026" / "b.jsonl").write_text(json.dumps({"body": CHAT}) + "\n\n")
    (tmp_path / "a.jsonl").write_text(json.dumps({"body": {"inputs": "a"}}) + "\n")
    assert [record.body for record in read_records(str(tmp_path))] == [CHAT, {"inputs": "a"}]
    assert len(read_records(str(tmp_path / "a.jsonl"))) == 1
    (tmp_path / "empty").mkdir()
    for path in ("nothing", "empty"):
        with pytest.raises(ConfigError, match=path):
            read_records(str(tmp_path / path))
    named = read_records("s3://bucket/x", lambda url: [(url, json.dumps({"body": CHAT}))])
    assert named[0].name == "s3://bucket/x:1"


def test_the_first_difference_and_the_share_of_changed_words() -> None:
    assert compare_texts("a b", "a b").is_exact
    difference = compare_texts("one two three four", "one two 3 four")
    assert (difference.position, difference.edit_ratio) == (8, 0.25)
    assert (difference.before, difference.after) == ("one two three four", "one two 3 four")
    assert compare_texts("", "a b").edit_ratio == 1.0
    assert compare_texts("a b", "a b c d").edit_ratio == 0.5
    long = " ".join(str(number) for number in range(3000))
    assert compare_texts(long, long[::-1]).edit_ratio == 1.0


@pytest.mark.parametrize(
    ("old", "new", "is_exact"),
    [
        (_chat("a") | {"id": "x", "created": 1}, _chat("a"), True),
        ([{"generated_text": "a"}], {"generated_text": "a"}, True),
        ({"content": [{"type": "text", "text": "a"}]}, _chat("a"), True),
        (_call("1"), _call("2"), True),
        (_chat("a"), _chat("b"), False),
        ("text", "text", True),
    ],
)  # fmt: skip
def test_answers_are_compared_by_what_they_say(old: Any, new: Any, is_exact: bool) -> None:
    assert compare(old, new).is_exact is is_exact


def test_vectors_and_scores_are_compared_as_numbers() -> None:
    old, new = ({"data": [{"embedding": [0.5, value]}]} for value in (1.0, 1.25))
    difference = compare(old, new)
    assert (difference.position, difference.edit_ratio, difference.largest) == (1, 0.5, 0.25)
    assert compare([[1, 2]], [[1, 2]]).is_exact
    ranks = [{"results": [{"index": i, "relevance_score": s} for i, s in order]}
             for order in ([(0, 0.5), (1, 0.75)], [(1, 0.75), (0, 0.5)])]  # fmt: skip
    assert compare(*ranks).is_exact
    assert compare([[1, 2]], [[1]]).edit_ratio == 1.0


def test_known_seeds_are_sent_again() -> None:
    info = {"seed": 7}
    assert with_seed(Recorded("a", CHAT, replay_info=info), None)["seed"] == 7
    assert with_seed(Recorded("a", CHAT | {"seed": 1}, replay_info=info), None)["seed"] == 1
    assert with_seed(Recorded("a", CHAT), 3)["seed"] == 3
    assert "seed" not in with_seed(Recorded("a", CHAT, replay_info={"seed": None}), None)
    generate = Recorded("a", {"inputs": "a"}, [{"generated_text": "", "details": {"seed": 5}}])
    assert with_seed(generate, None)["parameters"] == {"seed": 5}
    assert "seed" not in with_seed(Recorded("a", {"input": "a"}), 3)


def test_a_report_has_the_counts_and_the_facts_that_differ() -> None:
    records = [
        Recorded(name, CHAT, answer, replay_info={"cpu": "avx2"}, latency_s=1.0)
        for name, answer in (
            ("a", _chat("x")),
            ("b", _chat("one two")),
            ("c", None),
            ("d", _chat("")),
        )
    ]
    answers = [
        Replayed(_chat("x"), 0.5, 0.1, 3, {"cpu": "avx512"}),
        Replayed(_chat("one 2"), 0.5, 0.1, 3),
        Replayed(_chat("y"), 0.5, 0.1, 3),
        Replayed(None, 0.5, 0.0, error="HTTP 500"),
    ]
    report = make_report(records, answers)
    counts = [report[name] for name in ("requests", "compared", "exact", "changed", "failed")]
    assert counts == [4, 2, 1, 1, 1]
    assert report["mean_edit_ratio"] == 0.25
    lines = "\n".join(text(report))
    assert "the containers differ: cpu was avx2, is avx512" in lines
    assert "b: 50.0% of the words, from 4 on" in lines
    assert "d: failed: HTTP 500" in lines
    json.dumps(report)


def test_separators_within_texts_end_no_line(tmp_path: Path) -> None:
    """Data capture may have them as they are; only a line feed ends a line of JSON Lines."""
    body = json.dumps({"inputs": "a\u2028b\x85c"}, ensure_ascii=False)
    line = json.dumps(json.loads(_capture(body, "JSON")), ensure_ascii=False)
    (tmp_path / "a.jsonl").write_text(f"{line}\n")
    [record] = read_records(str(tmp_path))
    assert record.body == {"inputs": "a\u2028b\x85c"}
