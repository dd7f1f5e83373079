"""Starts that end with a reason, and settings that other machines leave in the environment."""

import shutil
from pathlib import Path

from tests.support.models.broken import broken_model
from tests.support.servers import (
    DEMO_MODEL,
    Server,
    free_port,
    spawn,
)


def test_an_unusable_model_ends_the_start_with_the_reason(tmp_path: Path) -> None:
    """Of each kind of reason one; tests/model/test_engine_loader.py has them all."""
    reasons = {
        "no such folder": tmp_path / "no",
        "Hub cannot be reached": "a/b",
        "config.json is missing": broken_model(tmp_path / "model-1", without="config.json"),
        "cannot be loaded": broken_model(tmp_path / "model-2", write=("model.safetensors", "xxx")),
        "the weights lack": broken_model(tmp_path / "model-3", num_hidden_layers=8),
    }
    started = [spawn(tmp_path / f"{n}.log", model) for n, model in enumerate(reasons.values())]
    for server, reason in zip(started, reasons, strict=True):
        assert server.process.wait(120) == 3, reason
        assert reason in server.log
        assert "Traceback" not in server.log


def test_bad_settings_are_all_reported_before_anything_starts(tmp_path: Path) -> None:
    server = spawn(tmp_path / "log", PAYLOAD_LIMIT="much", MAX_TOTAL_TOKENS="1", SM_NUM_GPUS="-1")
    assert server.process.wait(120) == 2
    assert all(name in server.log for name in ("PAYLOAD_LIMIT", "MAX_TOTAL_TOKENS", "SM_NUM_GPUS"))


def test_without_a_model_the_error_names_the_variable(tmp_path: Path) -> None:
    server = spawn(tmp_path / "log", "")
    assert server.process.wait(120) == 2
    assert "HF_MODEL_ID" in server.log


def test_a_taken_port_is_named(tmp_path: Path, server: Server) -> None:
    second = spawn(tmp_path / "log", PORT=str(server.port))
    assert second.process.wait(120) == 5
    assert str(server.port) in second.log


def test_sagemakers_port_wins_and_an_argument_is_accepted(tmp_path: Path) -> None:
    port = free_port()
    server = spawn(tmp_path / "log", PORT="1", SAGEMAKER_BIND_TO_PORT=str(port))
    server.port = port
    try:
        server.wait_ready()
    finally:
        server.stop()


def test_a_link_out_of_the_models_folder_ends_the_start(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, folder)
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").symlink_to("/etc/passwd")
    server = spawn(tmp_path / "log", folder)
    assert server.process.wait(120) == 3
    assert "leads out of the model's folder" in server.log
