"""The page for browsers, on an app without an engine."""

import hashlib
import re
from functools import cache
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from container.frontend.app import AppContext, create_app
from container.frontend.generation.service import Service
from container.frontend.options import Options
from container.frontend.web.ui.pages import FOLDER
from container.settings.settings import Settings
from tests.support.connections import NoEngine

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
OWN_FILES = sorted(path for path in FOLDER.iterdir() if path.is_file())


@cache
def _client(**environ: str) -> FlaskClient:
    options = Options.from_settings(Settings.from_environ(environ))
    return create_app(AppContext(Service(NoEngine(), NoEngine.tokenizer), options)).test_client()


@pytest.mark.parametrize("accept", [BROWSER, "text/html"])
def test_a_browser_gets_the_page_at_the_root(accept: str) -> None:
    response = _client().get("/", headers={"Accept": accept})
    assert response.status_code == 200
    assert response.content_type == "text/html; charset=utf-8"
    assert response.text == _client().get("/ui").text
    assert "Accept" in response.headers["Vary"]


@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "text/*", "text/html;q=0"])
def test_everyone_else_gets_the_health_check_at_the_root(accept: str | None) -> None:
    response = _client().get("/", headers={"Accept": accept} if accept else {})
    assert response.status_code == 503
    assert "the engine has not started yet" in response.text


def test_without_the_page_nothing_of_it_is_there() -> None:
    client = _client(UI="false")
    assert client.get("/", headers={"Accept": BROWSER}).status_code == 503
    for path in ("/ui", "/ui/", "/ui/app.js"):
        assert client.get(path).status_code == 404


def test_the_page_needs_no_key_and_opens_nothing_else() -> None:
    client = _client(API_KEY="secret")
    assert client.get("/", headers={"Accept": BROWSER}).status_code == 200
    assert client.get("/ui").status_code == 200
    assert client.get("/ui/app.js").status_code == 200
    assert client.get("/v1/models").status_code == 401
    assert client.post("/ui", json={}).status_code in (401, 405)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("app.js", "text/javascript; charset=utf-8"),
        ("vendor/purify.es.js", "text/javascript; charset=utf-8"),
        ("app.css", "text/css; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    ],
)
def test_files_have_their_types(name: str, kind: str) -> None:
    response = _client().get(f"/ui/{name}")
    assert response.status_code == 200
    assert response.content_type == kind
    assert response.data == (FOLDER / name).read_bytes()
    assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/ui/nothing.js", "/ui/../pages.py", "/ui/%2e%2e/pages.py", "/ui/..%2fpages.py",
        "/ui//app.js", "/ui/vendor", "/ui/vendor/README.md", "/ui//etc/passwd", "/ui/app.js%00",
    ],
)  # fmt: skip
def test_no_other_file_can_be_read(path: str) -> None:
    assert _client().get(path).status_code in (308, 404)


def test_a_trailing_slash_leads_to_the_page() -> None:
    response = _client().get("/ui/")
    assert (response.status_code, response.headers["Location"]) == (302, "../ui")


def test_a_file_that_the_browser_has_is_not_sent_again() -> None:
    client = _client()
    tag = client.get("/ui/app.js").headers["ETag"]
    again = client.get("/ui/app.js", headers={"If-None-Match": tag})
    assert (again.status_code, again.data) == (304, b"")


def test_the_policy_lets_the_page_reach_nothing_but_this_server() -> None:
    policy = _client().get("/ui").headers["Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    for name in ("script-src", "style-src", "connect-src"):
        assert rules[name] == "'self'"
    assert "unsafe" not in policy
    assert "*" not in policy
    assert "http" not in policy


def test_the_page_has_no_inline_scripts_or_styles() -> None:
    html = (FOLDER / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)", html) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=", html) == []


@pytest.mark.parametrize("path", OWN_FILES, ids=lambda path: path.name)
def test_own_files_name_no_other_host(path: Path) -> None:
    assert set(re.findall(r"https?://[\w.]+", path.read_text())) <= {"http://www.w3.org"}


def test_the_vendored_libraries_are_those_of_the_table() -> None:
    folder = FOLDER / "vendor"
    table = re.findall(
        r"^\| `([^`]+)` .*`([0-9a-f]{64})` \|$", (folder / "README.md").read_text(), re.M
    )
    files = {path.name: path for path in folder.iterdir() if path.suffix == ".js"}
    assert {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()
    } == (dict(table))


@pytest.mark.parametrize("path", ["/ui", "/ui/app.js", "/", "/docs/"])
def test_sagemakers_path_does_not_lead_to_the_page(path: str) -> None:
    headers = {"X-Amzn-SageMaker-Custom-Attributes": f"route={path}", "Accept": BROWSER}
    response = _client().post("/invocations", json={"inputs": "a"}, headers=headers)
    assert response.status_code in (400, 503)
    assert "text/html" not in response.content_type
    assert _client().get("/invocations", headers=headers).status_code == 405
