"""The proxy's calls of the runtime API: sessions, timeouts, turns, certificates and proxies."""

import asyncio
import resource
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from sagemaker_deploy.aws import Aws
from sagemaker_deploy.errors import ConfigError
from sagemaker_deploy.proxy.request_log import RequestLog
from sagemaker_deploy.proxy.runtime import runtime_client
from sagemaker_deploy.proxy.runtime.failures import CallFailed, Cause
from sagemaker_deploy.proxy.runtime.retries import Retries, RetrySettings
from sagemaker_deploy.proxy.runtime.sessions import Sessions
from sagemaker_deploy.proxy.serve import proxy_of, raise_file_limit, tls_context
from tests.support.aws.local_sagemaker import REGION
from tests.support.aws.proxies import proxying

SESSION = "X-Amzn-SageMaker-Session-Id"
ENDS = "; Expires=2099-01-01T00:00:00Z"


@contextmanager
def _runtime(patch: pytest.MonkeyPatch, silent_s: float = 0.0) -> Iterator[list[str]]:
    """A runtime API that opens sessions; the session ids of its requests."""
    session_ids: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            session_ids.append(self.headers.get(SESSION, ""))
            time.sleep(silent_s)
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            if session_ids[-1] == "NEW_SESSION":
                self.send_header("X-Amzn-SageMaker-New-Session-Id", f"s-{len(session_ids)}{ENDS}")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    patch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", f"http://127.0.0.1:{server.server_port}")
    patch.setenv("AWS_ACCESS_KEY_ID", "test")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    try:
        yield session_ids
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _embed(proxy: str, user: str) -> requests.Response:
    body = {"model": "a", "input": "a", "user": user}
    return requests.post(f"{proxy}/v1/embeddings", json=body, timeout=60)


def test_a_session_is_opened_by_its_constant_and_then_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"endpoint": "a", "container": "ours", "sessions": True}
    with _runtime(monkeypatch) as session_ids, proxying({"a": model}) as proxy:
        for user in ("alice", "alice", "bob"):
            assert _embed(proxy, user).status_code == 200
    assert session_ids == ["NEW_SESSION", "s-1", "s-1", "NEW_SESSION", "s-4"]


def test_a_call_that_times_out_is_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_client, "WHOLE_TIMEOUT_S", 0.3)
    model = {"endpoint": "a", "container": "ours"}
    with _runtime(monkeypatch, silent_s=1.0) as session_ids, proxying({"a": model}) as proxy:
        answer = _embed(proxy, "alice")
    assert answer.status_code == 504
    assert "in time" in answer.json()["error"]["message"]
    assert len(session_ids) == 1


def test_a_slow_session_holds_up_its_own_key_only() -> None:
    async def check() -> None:
        opened: list[str] = []
        go = asyncio.Event()

        async def open_session() -> str:
            opened.append("")
            number = len(opened)
            if number == 1:
                await go.wait()
            return f"s-{number}{ENDS}"

        sessions = Sessions(open_session)
        slow = [asyncio.create_task(sessions.id_of("slow")) for _ in range(2)]
        await asyncio.sleep(0)
        assert await asyncio.wait_for(sessions.id_of("other"), 10) == "s-2"
        go.set()
        assert await asyncio.gather(*slow) == ["s-1", "s-1"]
        assert len(opened) == 2

    asyncio.run(check())


def test_calls_without_capacity_go_on_when_one_has_begun() -> None:
    # One at a time, they would take 40 turns of 0.5 s.
    async def check() -> None:
        retries = Retries(RetrySettings(capacity_poll_s=0.5))
        finish, asked, begun = asyncio.Event(), set[int](), set[int]()

        async def call(number: int) -> None:
            async def attempt() -> None:
                if number not in asked:
                    asked.add(number)
                    raise CallFailed(Cause.CAPACITY, 503, "no capacity")
                retries.add_open()
                begun.add(number)
                await finish.wait()

            await retries.run(attempt)

        tasks = [asyncio.create_task(call(number)) for number in range(40)]
        async with asyncio.timeout(10):
            while len(begun) < len(tasks):
                await asyncio.sleep(0.01)
        finish.set()
        await asyncio.gather(*tasks)

    asyncio.run(check())


def test_certificates_are_those_of_boto3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    assert tls_context(Aws(REGION).ca_bundle).get_ca_certs()
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(ConfigError, match=r"AWS_CA_BUNDLE .*none\.pem"):
        tls_context(Aws(REGION).ca_bundle)


def test_proxies_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://runtime.sagemaker.us-east-1.amazonaws.com"
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert proxy_of(url) is None
    monkeypatch.setenv("HTTPS_PROXY", "proxy.example:3128")
    assert proxy_of(url) == "http://proxy.example:3128"
    monkeypatch.setenv("NO_PROXY", ".amazonaws.com")
    assert proxy_of(url) is None


def test_an_infinite_limit_of_files_that_the_system_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[tuple[int, int]] = []

    def refuse(_: int, pair: tuple[int, int]) -> None:
        if pair[0] > 10_240:
            raise ValueError("current limit exceeds maximum limit")
        limits.append(pair)

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 2**63 - 1))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    raise_file_limit()
    assert limits == [(10_240, 2**63 - 1)]


def test_only_its_owner_reads_a_record_that_was_there_before(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text("")
    file.chmod(0o644)
    RequestLog(file).close()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="--record"):
        RequestLog(tmp_path / "none" / "requests.jsonl")
