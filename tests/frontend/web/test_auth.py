"""The guards of every route, on an app without an engine."""

import pytest

from container.frontend.app import AppContext, create_app
from container.frontend.generation.service import Service
from container.frontend.options import Options
from container.settings.settings import Settings
from tests.support.connections import NoEngine

KEY = {"Authorization": "Bearer right"}


@pytest.mark.parametrize(
    ("headers", "path", "status"),
    [
        ({}, "/generate", 401),
        ({"Authorization": "Bearer wrong"}, "/v1/chat/completions", 401),
        (KEY, "/generate", 503),
        (KEY, "/nowhere", 404),
    ],
)
def test_every_refused_request_is_counted(headers: dict[str, str], path: str, status: int) -> None:
    options = Options.from_settings(Settings.from_environ({"API_KEY": "right"}))
    client = create_app(AppContext(Service(NoEngine(), NoEngine.tokenizer), options)).test_client()
    assert client.post(path, json={"inputs": "a"}, headers=headers).status_code == status
    lines = client.get("/metrics").text.splitlines()
    assert "tgi_request_count 1.0" in lines
    assert len([line for line in lines if line.startswith("tgi_request_failure{")]) == 1
