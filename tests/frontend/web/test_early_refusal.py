"""A full engine's requests are refused before the application, as it would refuse them."""

import io
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import EnvironBuilder, run_wsgi_app

from container.frontend.apis.docs.route_specs import OPERATIONS
from container.frontend.app import AppContext, create_app
from container.frontend.generation.service import Service
from container.frontend.options import Options
from container.frontend.web.early_refusal import INVOCATIONS, PATHS, EarlyRefusals
from container.messages.engine import EngineInfo, EngineLoad, Status
from container.settings.settings import Settings
from tests.support.connections import INFO

GENERATE = {"inputs": "a"}
CHAT = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
PROMPT = {"prompt": "a"}
TYPED = CHAT | {"system": "Be brief."}
RESPONSES = {"input": "a"}
BODIES: dict[str, dict[str, Any]] = {
    "/": GENERATE, "/generate": GENERATE, "/generate_stream": GENERATE, "/v1/completions": PROMPT,
    "/v1/responses": RESPONSES, "/v1/messages": CHAT, "/chat/completions": CHAT,
    "/v1/chat/completions": CHAT, "/openai/v1/chat/completions": CHAT,
}  # fmt: skip


class Engine:
    """Implements what admission needs of an engine; `num_free` places are left."""

    status = Status("ready", "ready", INFO, EngineLoad(running=4))

    def __init__(self, num_free: int) -> None:
        self.num_free = num_free


class Tokenizer:
    def start_renderer(self) -> None:
        """There are no templates."""


def _load(_: EngineInfo) -> Any:
    return Tokenizer()


def _flask(num_free: int = 0, **environ: str) -> Flask:
    options = Options.from_settings(Settings.from_environ(environ))
    return create_app(AppContext(Service(Engine(num_free), _load), options))


def _app(num_free: int = 0, **environ: str) -> EarlyRefusals:
    app = _flask(num_free, **environ).wsgi_app
    assert isinstance(app, EarlyRefusals)
    return app


class Inner:
    """Counts the requests that reach the application."""

    def __init__(self, refusals: EarlyRefusals) -> None:
        self.num_requests = 0
        self._app = refusals.app
        object.__setattr__(refusals, "app", self)

    def __call__(self, environ: Any, start_response: Any) -> Any:
        self.num_requests += 1
        return self._app(environ, start_response)


def _send(app: Any, path: str, body: Any, **how: Any) -> tuple[str, dict[str, str], bytes]:
    parts = {"data": body} if isinstance(body, bytes) else {"json": body}
    environ = EnvironBuilder(path, method="POST", **parts, **how).get_environ()
    pieces, status, headers = run_wsgi_app(app, environ, buffered=True)
    named = {name.lower(): value for name, value in headers.items()}
    # For browsers, which name their origin, and so are not refused early.
    named = {name: value for name, value in named.items() if not name.startswith("access-")}
    assert named.pop("x-request-id") == named.pop("request-id")
    return status, named, b"".join(pieces)


@pytest.mark.parametrize(
    ("path", "body"),
    [*BODIES.items(), *((INVOCATIONS, body) for body in (GENERATE, CHAT, PROMPT, TYPED, {}))],
)
def test_an_early_refusal_is_the_applications(path: str, body: dict[str, Any]) -> None:
    app = _app()
    late = _send(app.app, path, body)
    inner = Inner(app)
    if body:
        assert late[0].startswith("429")
    else:  # the application would name the fault, which may wait until it has a place
        late = _send(app, path, GENERATE)
    assert _send(app, path, body) == late
    assert inner.num_requests == 0


def test_all_routes_that_generate_are_known() -> None:
    streaming = {one.path for one in OPERATIONS if one.method == "post" and one.streams}
    assert streaming | {"/generate"} == {*PATHS, INVOCATIONS}
    assert BODIES.keys() == PATHS


@pytest.mark.parametrize(
    ("path", "body", "how", "status"),
    [
        ("/generate", GENERATE, {"headers": {"Authorization": "Bearer wrong"}}, "401"),
        ("/generate", b" " * 2000, {"content_type": "application/json"}, "413"),
        ("/v1/chat/completions", CHAT, {"headers": {"Origin": "http://a"}}, "429"),
        (INVOCATIONS, CHAT, {"headers": {"X-Amzn-SageMaker-Session-Id": "a"}}, "429"),
        # Whatever the answer: these need no place, or one of another kind.
        (INVOCATIONS, b"inputs\na", {"content_type": "text/csv"}, ""),
        ("/tokenize", GENERATE, {}, ""),
        ("/nowhere", GENERATE, {}, "404"),
    ],
)
def test_requests_that_need_their_body_pass(
    path: str, body: Any, how: dict[str, Any], status: str
) -> None:
    app = _app(API_KEY="right", PAYLOAD_LIMIT="1000")
    how = {"headers": {"Authorization": "Bearer right"}} | how
    if "Authorization" not in how["headers"]:
        how["headers"] |= {"Authorization": "Bearer right"}
    inner = Inner(app)
    assert _send(app, path, body, **how)[0].startswith(status)
    assert inner.num_requests == 1


def test_nothing_is_refused_while_the_engine_has_room() -> None:
    app = _app(num_free=1)
    inner = Inner(app)
    _send(app, "/generate", {"inputs": 1})
    assert inner.num_requests == 1


class Trickle(io.BytesIO):
    """A body that ends early, or whose reader fails."""

    def __init__(self, fails: bool) -> None:
        super().__init__(b"{")
        self._fails = fails

    def read(self, size: int | None = -1) -> bytes:
        if self._fails:
            raise OSError("gone")
        return super().read(size)


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("path", ["/generate", INVOCATIONS])
def test_a_body_that_cannot_be_read_is_refused_too(path: str, fails: bool) -> None:
    app = _app()
    stream = Trickle(fails)
    environ = EnvironBuilder(
        path, method="POST", content_type="application/json", input_stream=stream,
        content_length=500,
    ).get_environ()  # fmt: skip
    _, status, _ = run_wsgi_app(app, environ, buffered=True)
    assert status.startswith("429")


def test_refusals_are_counted_and_return_their_request_ids() -> None:
    client = _flask().test_client()
    refused = client.post("/generate", json=GENERATE, headers={"x-request-id": "mine"})
    assert refused.status_code == 429
    assert refused.headers["x-request-id"] == "mine"
    lines = client.get("/metrics").text.splitlines()
    assert 'tgi_request_failure{err="overloaded"} 1.0' in lines
    assert "tgi_request_count 1.0" in lines
