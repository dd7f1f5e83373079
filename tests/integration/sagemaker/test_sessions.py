"""Sticky sessions, as the platform opens, uses and closes them."""

import json
import re
from collections.abc import Iterator

import pytest

from tests.support.aws import sagemaker_client as platform
from tests.support.servers import Server, serving

BODY = json.dumps({"inputs": "Hello", "parameters": {"max_new_tokens": 3}}).encode()
NEW, CLOSE = b'{"requestType": "NEW_SESSION"}', b'{"requestType": "CLOSE"}'
# What the API demands of NewSessionId (botocore's InvokeEndpointOutput).
NEW_SESSION = re.compile(r"[A-Za-z0-9](-*[A-Za-z0-9])*;\sExpires=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@pytest.fixture(scope="module")
def sticky(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"SAGEMAKER_ENABLE_STATEFUL_SESSIONS": "true", "WORKERS": "2"}
    with serving(tmp_path_factory.mktemp("sticky") / "log", **settings) as server:
        yield server


def _open(server: Server) -> str:
    answer = platform.invoke(server.port, NEW, session_id="NEW_SESSION")
    assert answer.status == 200
    session_header = answer.headers["X-Amzn-SageMaker-Session-Id"]
    assert NEW_SESSION.fullmatch(session_header)
    assert answer.headers["X-Amzn-SageMaker-New-Session-Id"] == session_header
    return str(session_header).split(";")[0]


def test_a_session_is_opened_used_by_every_frontend_and_closed(sticky: Server) -> None:
    session = _open(sticky)
    for _ in range(6):
        assert platform.invoke(sticky.port, BODY, session_id=session).status == 200
    closed = platform.invoke(sticky.port, CLOSE, session_id=session)
    assert closed.headers["X-Amzn-SageMaker-Closed-Session-Id"] == session
    assert platform.invoke(sticky.port, BODY, session_id=session).status == 400
    assert platform.invoke(sticky.port, CLOSE, session_id=session).status == 400


def test_a_request_may_open_its_session_itself(sticky: Server) -> None:
    answer = platform.invoke(sticky.port, BODY, session_id="NEW_SESSION")
    assert json.loads(answer.body)[0]["generated_text"]
    session_header = answer.headers["X-Amzn-SageMaker-New-Session-Id"]
    assert platform.invoke(sticky.port, BODY, session_id=session_header.split(";")[0]).status == 200


def test_a_session_keeps_its_blocks(sticky: Server) -> None:
    session = _open(sticky)
    text = json.dumps({"inputs": "word " * 100, "parameters": {"max_new_tokens": 3}}).encode()
    used = sticky.metric("engine_blocks_used")
    assert platform.invoke(sticky.port, text, session_id=session).status == 200
    platform.invoke(sticky.port, BODY)
    assert sticky.metric("engine_blocks_used") >= max(0.0, used)


@pytest.mark.parametrize(
    ("body", "session", "status", "reason"),
    [
        (BODY, "unknown", 400, "is not open"),
        (BODY, "../../etc/passwd", 400, "is not open"),
        (CLOSE, None, 424, "needs the header"),
        (CLOSE, "unknown", 400, "is not open"),
        (b'{"requestType": "NEW_SESSION", "x": 1}', "NEW_SESSION", 400, "not x"),
        (b'{"requestType": "OPEN"}', None, 400, "requestType"),
    ],
)
def test_wrong_session_requests(
    sticky: Server, body: bytes, session: str | None, status: int, reason: str
) -> None:
    session_field = {"session_id": session} if session else {}
    answer = platform.invoke(sticky.port, body, **session_field)
    assert answer.status == status
    assert reason in json.loads(answer.body)["error"]


def test_without_sessions_their_header_is_refused(server: Server) -> None:
    answer = platform.invoke(server.port, BODY, session_id="abc")
    assert answer.status == 400
    assert "SAGEMAKER_ENABLE_STATEFUL_SESSIONS" in json.loads(answer.body)["error"]
