"""A model named by its Hub id is downloaded and served; refusals of the Hub are explained."""

from pathlib import Path

import requests

from tests.support.servers import DEMO_MODEL, serving, spawn
from tests.support.services.hub import SHA, hub


def _settings(port: int, tmp_path: Path, **more: str) -> dict[str, str]:
    home = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    return home | {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_DISABLE_XET": "1"} | more


def test_a_repository_is_downloaded_and_served(tmp_path: Path) -> None:
    with (
        hub(DEMO_MODEL, "org/demo", token="s3cret") as server,
        serving(
            tmp_path / "log",
            "org/demo",
            **_settings(server.server_port, tmp_path, HF_TOKEN="s3cret"),
        ) as running,
    ):
        info = requests.get(f"{running.url}/info", timeout=5).json()
        assert info["model_id"] == "org/demo"
        assert info["model_sha"] == SHA
        body = {"inputs": "Hello", "parameters": {"max_new_tokens": 3}}
        assert requests.post(f"{running.url}/generate", json=body, timeout=30).ok
        assert "s3cret" not in running.log


def test_refusals_of_the_hub_are_explained(tmp_path: Path) -> None:
    with hub(DEMO_MODEL, "org/demo", token="s3cret") as server:
        settings = _settings(server.server_port, tmp_path)
        without_token = spawn(tmp_path / "1.log", "org/demo", **settings)
        of_no_model = spawn(tmp_path / "2.log", "org/other", **settings, HF_TOKEN="s3cret")
        for running, reason in (
            (without_token, "is gated"),
            (of_no_model, "nor a repository on the Hub"),
        ):
            assert running.process.wait(120) == 3
            assert reason in running.log
            assert "Traceback" not in running.log
