"""SageMaker's contract of a real-time, an asynchronous and a batch container, as it calls them."""

import json
import threading
from pathlib import Path

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.aws import sagemaker_client as platform
from tests.support.models.user_code import folder_with
from tests.support.servers import Server, SharedServers, serving

LINES = "application/jsonlines"


def _generate(text: str, count: int = 6, **extra: object) -> dict:
    return {"inputs": text, "parameters": {"max_new_tokens": count}} | extra


def _lines(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def _answers(answer: platform.Answer) -> list:
    return [json.loads(line) for line in answer.body.splitlines()]


def test_ping_and_an_invocation_with_the_platforms_headers(server: Server) -> None:
    assert platform.ping(server.port) == 200
    answer = platform.invoke(
        server.port,
        json.dumps(_generate("Hello")).encode(),
        custom_attributes="trace=1; who=me",
        inference_id="my-id",
        target_model="ignored.tar.gz",
        enable_explanations="`true`",
        prefix_aware_id="p1",
        inference_component="ic-1",
    )
    assert answer.status == 200
    assert answer.headers["X-Amzn-SageMaker-Custom-Attributes"] == "trace=1; who=me"
    assert answer.headers["Content-Type"] == "application/json"


def test_custom_attributes_come_back_with_errors_and_streams_too(server: Server) -> None:
    failed = platform.invoke(server.port, b"{", custom_attributes="a")
    assert (failed.status, failed.headers["X-Amzn-SageMaker-Custom-Attributes"]) == (400, "a")
    body = json.dumps(_generate("Hello", stream=True)).encode()
    streamed = platform.invoke(server.port, body, custom_attributes="b")
    assert streamed.headers["X-Amzn-SageMaker-Custom-Attributes"] == "b"
    assert streamed.headers["Transfer-Encoding"] == "chunked"
    assert streamed.body.endswith(b"\n")


def test_json_lines_are_answered_line_by_line(server: Server) -> None:
    texts = ["Deep learning is", "Hello", "The capital of France is", "One two three"]
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "temperature": 0}
    body = _lines(*[_generate(text, 3 + 5 * (i % 2)) for i, text in enumerate(texts)], chat, "Hey")
    answer = platform.invoke(server.port, body, LINES)
    assert (answer.status, answer.headers["Content-Type"]) == (200, LINES)
    reported = _answers(answer)
    assert len(reported) == 6
    for text, one in zip(texts, reported, strict=False):
        assert one[0]["generated_text"].startswith(text)
    assert reported[4]["object"] == "chat.completion"
    assert reported[5][0]["generated_text"].startswith("Hey")
    alone = requests.post(f"{server.url}/invocations", json=_generate(texts[2], 3), timeout=60)
    assert alone.json() == reported[2]


def test_a_bad_line_is_an_error_object_on_its_own_line(server: Server) -> None:
    body = (
        _lines(_generate("Hello"))
        + b"{broken\n\n[1]\n"
        + _lines({"inputs": 5}, {"messages": []}, _generate("x", stream=True), _generate("x", -1))
        + _lines(_generate("Bye"))
    )
    reported = _answers(platform.invoke(server.port, body, LINES))
    assert len(reported) == 8
    assert "generated_text" in reported[0][0]
    assert "the line is not valid JSON" in reported[1]["error"]
    assert "the line must be a JSON object" in reported[2]["error"]
    assert "`inputs`" in reported[3]["error"]
    assert "messages" in reported[4]["error"]["message"]
    assert "`stream`" in reported[5]["error"]
    assert "max_new_tokens" in reported[6]["error"]
    assert "generated_text" in reported[7][0]


def test_records_share_the_engines_batches_and_wait_for_room(tmp_path: Path) -> None:
    """Two bodies of 30 records at a server that takes 8 requests: none is refused."""
    with serving(tmp_path / "log", MAX_CONCURRENT_REQUESTS="8") as server:
        before = server.metric("engine_steps_total")
        body = _lines(*[_generate(f"Count to {i}", 20) for i in range(30)])
        answers: list[platform.Answer] = []
        threads = [
            threading.Thread(
                target=lambda: answers.append(platform.invoke(server.port, body, LINES))
            )
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        for answer in answers:
            reported = _answers(answer)
            assert [one[0]["generated_text"].startswith(f"Count to {i}") for i, one in
                    enumerate(reported)] == [True] * 30  # fmt: skip
        assert server.metric("engine_steps_total") - before < 60 * 20 / 3


def test_the_servers_own_fault_fails_the_whole_body(
    shared_servers: SharedServers, endless_model: Path
) -> None:
    server = shared_servers.get(endless_model)
    body = _lines(_generate("a", 50_000), _generate("b", 1))
    answers: list[platform.Answer] = []
    asking = threading.Thread(
        target=lambda: answers.append(platform.invoke(server.port, body, LINES))
    )
    asking.start()
    while not server.metric("engine_blocks_used") > 0:
        pass
    server.engine().kill()
    asking.join(30)
    assert answers[0].status == 503


def test_text_and_csv_are_read_and_written(server: Server) -> None:
    plain = platform.invoke(server.port, b"Deep learning is", "text/plain", accept="text/plain")
    assert plain.body.startswith(b"Deep learning is")
    assert plain.headers["Content-Type"].startswith("text/plain")
    as_json = platform.invoke(server.port, b"Hello", "text/plain; charset=utf-8")
    assert json.loads(as_json.body)[0]["generated_text"].startswith("Hello")
    table = platform.invoke(server.port, b'inputs\n"Hello, you"\nBye\n', "text/csv")
    rows = table.body.decode().splitlines()
    assert table.headers["Content-Type"].startswith("text/csv")
    assert rows[0] == "generated_text"
    assert "Hello, you" in table.body.decode()
    array = platform.invoke(server.port, b"inputs\na\nb\n", "text/csv", accept="application/json")
    assert len(json.loads(array.body)) == 2


@pytest.mark.parametrize(
    ("content_type", "accept", "status", "reason"),
    [
        ("application/zip", "*/*", 415, "application/jsonlines"),
        ("application/x-npy", "*/*", 415, "text/csv"),
        ("application/json", "image/png", 406, "application/json"),
        ("application/json", "application/x-npy", 406, "text/plain"),
        ("application/jsonlines", "text/html", 406, "offered"),
    ],
)
def test_other_types_are_refused_with_those_that_work(
    server: Server, content_type: str, accept: str, status: int, reason: str
) -> None:
    body = json.dumps(_generate("Hello")).encode()
    answer = platform.invoke(server.port, body, content_type, accept=accept)
    assert answer.status == status
    assert reason in answer.body.decode()[:200]


def test_execution_parameters_follow_the_batch_jobs_variables(
    server: Server, tmp_path: Path
) -> None:
    parameters = json.loads(platform.call(server.port, "GET", "/execution-parameters").body)
    assert parameters == {
        "MaxConcurrentTransforms": 2,
        "BatchStrategy": "MULTI_RECORD",
        "MaxPayloadInMB": 25,
    }
    job = {
        "SAGEMAKER_BATCH": "true",
        "SAGEMAKER_BATCH_STRATEGY": "SINGLE_RECORD",
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": "7",
        "API_KEY": "k",
    }
    with serving(tmp_path / "log", **job) as own:
        parameters = json.loads(platform.call(own.port, "GET", "/execution-parameters").body)
        assert parameters == {
            "MaxConcurrentTransforms": 14,
            "BatchStrategy": "SINGLE_RECORD",
            "MaxPayloadInMB": 7,
        }
        large = {"Content-Type": "application/json", "Authorization": "Bearer k"}
        body = json.dumps({"inputs": "x", "padding": "x" * 6_900_000}).encode()
        assert platform.call(own.port, "POST", "/invocations", body, large).status == 200


def test_log_lines_have_the_inference_id(tmp_path: Path) -> None:
    program = """
import logging
def model_fn(model_dir): return None
def predict_fn(data, model):
    logging.getLogger("mine").warning("looking at %s", data)
    return 1 // data
"""
    folder = folder_with(tmp_path / "model", program)
    with serving(tmp_path / "log", folder) as server:
        assert platform.invoke(server.port, b"1", inference_id="abc-1").status == 200
        assert platform.invoke(server.port, b"0", inference_id="abc-2").status == 500
        lines = [json.loads(line) for line in server.log.splitlines()]
        named = {line["message"]: line.get("inference_id") for line in lines}
        assert named["looking at 1"] == "abc-1"
        assert named["looking at 0"] == "abc-2"
        assert named["handler: user code failed; the client gets an error"] == "abc-2"


BODIES = st.one_of(
    st.binary(max_size=80),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["inputs", "messages", "parameters", "stream", "role", "content",
                             "max_tokens", "n", "stop", "top_k", "seed", "model", "tools"])
            | st.text(max_size=4), inner, max_size=5,
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode()),
)  # fmt: skip
TYPES = st.sampled_from(
    ["application/json", LINES, "text/plain", "text/csv", "", "text/html", "x", "application/x-npy"]
)
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
HEADERS = st.dictionaries(
    st.sampled_from(["custom_attributes", "inference_id", "target_model", "session_id", "accept",
                     "adapter_identifier", "forwarded_api", "no_such_header"]), VALUES, max_size=4,
)  # fmt: skip


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(body=BODIES, content_type=TYPES, headers=HEADERS)
def test_no_body_and_no_header_of_a_client_is_answered_with_500(
    server: Server, body: bytes, content_type: str, headers: dict[str, str]
) -> None:
    if b"inputs" in body or b"messages" in body or content_type in ("text/plain", "text/csv"):
        headers = headers | {"accept": "no/such-type"}  # checked all the same, not generated
    answer = platform.invoke(server.port, body, content_type, **headers)
    assert answer.status < 500, answer.body
    if answer.status != 200:
        assert json.loads(answer.body)["error"]
