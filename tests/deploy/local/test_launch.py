from pathlib import Path

import pytest

from sagemaker_deploy.errors import MissingTool
from sagemaker_deploy.local.containers import launch
from sagemaker_deploy.local.containers.launch import Mounts

SERVER = ["python", "-m", "container", "serve"]


def _process(variables, folder: Path | None = None, environ=None):
    mounts = Mounts({launch.MODEL_DIR: folder} if folder else {})
    return launch.server_process(SERVER, variables, mounts, 9000, environ or {})


def test_a_process_listens_on_its_port_of_localhost() -> None:
    env = _process({"HF_MODEL_ID": "demo"}).env
    assert env == {
        "HF_MODEL_ID": "demo",
        "SAGEMAKER_BIND_TO_PORT": "9000",
        "HOST": "127.0.0.1",
    }


def test_the_shells_variables_do_not_reach_the_container() -> None:
    env = _process({}, environ={"MAX_TOTAL_TOKENS": "5", "PATH": "/bin", "AWS_PROFILE": "x"}).env
    assert env["PATH"] == "/bin"
    assert "MAX_TOTAL_TOKENS" not in env
    assert "AWS_PROFILE" not in env


def test_variables_that_name_the_model_folder_are_rewritten(tmp_path: Path) -> None:
    variables = {"HF_MODEL_ID": "/opt/ml/model", "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code"}
    env = _process(variables | {"OTHER": "/opt/ml/modelling"}, tmp_path).env
    assert env["HF_MODEL_ID"] == str(tmp_path)
    assert env["SAGEMAKER_SUBMIT_DIRECTORY"] == f"{tmp_path}/code"
    assert env["OTHER"] == "/opt/ml/modelling"


def test_a_mounted_model_is_found_without_a_variable(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    env = _process({"HF_MODEL_ID": "", "SAGEMAKER_SUBMIT_DIRECTORY": ""}, tmp_path).env
    assert env["HF_MODEL_ID"] == str(tmp_path)
    assert env["SAGEMAKER_SUBMIT_DIRECTORY"] == f"{tmp_path}/code"


def test_a_model_from_the_hub_wins_over_a_mounted_one(tmp_path: Path) -> None:
    assert _process({"HF_MODEL_ID": "org/name"}, tmp_path).env["HF_MODEL_ID"] == "org/name"


def test_an_image_runs_as_sagemaker_runs_it() -> None:
    mounts = Mounts({launch.MODEL_DIR: Path("/models/demo")})
    command = launch.image_run("podman", "llm:1", {"A": "1"}, mounts, 9000, {"PATH": "/bin"})
    assert command.argv == [
        "podman", "run", "--rm", "-p", "127.0.0.1:9000:8080",
        "-v", "/models/demo:/opt/ml/model:ro", "-e", "A=1", "llm:1", "serve",
    ]  # fmt: skip
    assert command.env == {"PATH": "/bin"}


def test_a_missing_container_tool_is_named() -> None:
    with pytest.raises(MissingTool, match="no-such-tool is not installed"):
        launch.container_tool("no-such-tool")
