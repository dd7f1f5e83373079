"""Who may use the proxy, and what a deployment of it is refused for."""

import logging
from pathlib import Path

import pytest
import requests

from sagemaker_deploy.errors import ConfigError
from sagemaker_deploy.proxy import targets
from sagemaker_deploy.proxy.keys import Keys, check_host, is_foreign, read_keys
from tests.support.aws.local_sagemaker import Local
from tests.support.aws.proxies import proxying

BODY = {"model": "tgi", "messages": [{"role": "user", "content": "a"}]}
CHAT = "/v1/chat/completions"


def test_keys_are_read_from_two_headers_and_named_in_the_log(
    vendors: Local, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="sagemaker_deploy.proxy")
    models = {"tgi": {"endpoint": "tgi", "container": "tgi"}}
    with proxying(models, keys=Keys({"alice": "a-long-key", "bob": "another-key"})) as url:
        for headers in ({"Authorization": "Bearer a-long-key"}, {"x-api-key": "another-key"}):
            answer = requests.post(url + CHAT, json=BODY, headers=headers, timeout=30)
            assert answer.status_code == 200
        not_utf8: dict[str, bytes | str] = {"x-api-key": b"\xff\xfe-a-long-key"}
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic x"},
            not_utf8,
        ):
            for path in (CHAT, "/v1/messages", "/generate"):
                answer = requests.post(url + path, json=BODY, headers=headers, timeout=30)
                assert answer.status_code == 401
            assert requests.get(f"{url}/metrics", headers=headers, timeout=30).status_code == 401
        assert requests.get(f"{url}/health", timeout=30).status_code == 200
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert "key=alice" in lines[0]
    assert "key=bob" in lines[1]
    for part in ("model=tgi", "status=200", "kind=joined", "prompt_tokens=4 completion_tokens=3"):
        assert part in lines[0]


def test_pages_of_other_sites_are_refused_without_keys(proxy: str) -> None:
    port = proxy.rpartition(":")[2]
    for headers in (
        {"Origin": "https://example.com"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Host": f"evil.example:{port}"},
    ):
        answer = requests.post(proxy + CHAT, json=BODY, headers=headers, timeout=30)
        assert answer.status_code == 403
    headers = {"Origin": "http://localhost:3000", "Host": f"localhost:{port}"}
    assert requests.post(proxy + CHAT, json=BODY, headers=headers, timeout=30).status_code == 200


def test_a_host_that_is_no_url_is_foreign() -> None:
    assert is_foreign({"Host": "["})
    assert is_foreign({"Host": "[::1"})
    assert not is_foreign({"Host": "[::1]:8090"})


def test_other_machines_are_let_in_with_keys_only(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.com"):
        with pytest.raises(ConfigError, match="--keys"):
            check_host(host, Keys({}))
        check_host(host, Keys({"a": "12345678"}))
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        check_host(host, Keys({}))
    file = tmp_path / "keys"
    file.write_text("# of the team\nalice = 12345678\n\nbob=87654321\n")
    assert read_keys(file).owner({"x-api-key": "12345678"}) == "alice"
    file.write_text("alice=short\n")
    with pytest.raises(ConfigError, match="8 characters"):
        read_keys(file)
    with pytest.raises(ConfigError, match="no such file"):
        read_keys(tmp_path / "nothing")


def test_unknown_routes_and_methods_have_error_bodies(proxy: str) -> None:
    for method, path, status in (("GET", CHAT, 405), ("POST", "/v1/none", 404), ("GET", "/x", 404)):
        answer = requests.request(method, proxy + path, timeout=30)
        assert answer.status_code == status
        assert path in answer.json()["error"]["message"]


def test_a_body_over_sagemakers_limit_is_a_413_with_the_number(proxy: str) -> None:
    answer = requests.post(proxy + CHAT, data=b" " * 26_214_401, timeout=30)
    assert answer.status_code == 413
    assert "26214400" in answer.json()["error"]["message"]


def test_models_come_from_options_and_files(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("default: big\nmodels:\n  big: {endpoint: chat, component: big-1}\n")
    known = targets.load(file, ("small=chat/small-1", "other"))
    assert list(known.models) == ["big", "small", "other"]
    assert known.models["small"].component == "small-1"
    assert known.find("gpt-5") == ("big", known.models["big"])
    assert targets.load(None, ("chat",)).find("any") is not None
    assert targets.load(None, ("a", "b")).find("any") is None
    toml = tmp_path / "models.toml"
    toml.write_text('[models.a]\nendpoint = "chat"\ncontainer = "tgi"\n')
    assert targets.load(toml, ()).models["a"].container == "tgi"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: {a: {endpoint: 'x y'}}", "models.a.endpoint"),
        ("models: {a: {endpoint: b, containr: tgi}}", "models.a.containr"),
        ("models: {a: {endpoint: b}}\ndefault: c", "default: 'c'"),
        ("models: {}", "models: none"),
        ("models: [", "models.yaml"),
        ("- a", "dictionary"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        targets.load(file, ())


@pytest.mark.parametrize("option", ["a b", "x=", "x=a/b/c", "=", "a=b c"])
def test_options_that_name_no_endpoint(option: str) -> None:
    with pytest.raises(ConfigError, match="ENDPOINT"):
        targets.load(None, (option,))
