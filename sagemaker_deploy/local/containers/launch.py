"""Builds the command of a local container: the server's process, or its image.

Pure functions of CreateModel's parameters; `process.py` runs the result. SageMaker's fixed folders
are a mount in an image; for a process every variable that names one is rewritten.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sagemaker_deploy.errors import MissingTool

MODEL_DIR = "/opt/ml/model"
MODELS_DIR = "/opt/ml/models"
ADAPTERS_DIR = "/opt/ml/adapters"
CHANNELS_DIR = "/opt/ml/additional-model-data-sources"
CONTAINER_PORT = 8080
# Variables that a process inherits from this machine; all others are the model's, as on SageMaker.
INHERITED = {
    "PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT",
    "HF_HUB_OFFLINE", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mounts:
    """Folders of this machine, by the path that the container expects."""

    folders: Mapping[str, Path] = field(default_factory=dict)

    def rewrite(self, value: str) -> str:
        """Translate a container's path to a path of this machine; return other text unchanged."""
        for inside, outside in self.folders.items():
            if value == inside or value.startswith(f"{inside}/"):
                return str(outside) + value.removeprefix(inside)
        return value


@dataclass(frozen=True, slots=True)
class Command:
    """The command to run, with its whole environment."""

    argv: list[str]
    env: dict[str, str]
    # A process sees this machine's folders under their own names, an image under its mounts.
    sees_mounts: bool = False


def server_process(
    server: Sequence[str],
    variables: Mapping[str, str],
    mounts: Mounts,
    port: int,
    environ: Mapping[str, str] = os.environ,
) -> Command:
    """Build the command of the container's server as a process on a port of this machine."""
    env = {name: value for name, value in environ.items() if name in INHERITED}
    env |= {name: mounts.rewrite(value) for name, value in variables.items()}
    model_dir = mounts.folders.get(MODEL_DIR)
    if model_dir and not env.get("HF_MODEL_ID"):
        env["HF_MODEL_ID"] = str(model_dir)
    if model_dir and (model_dir / "code").is_dir() and not env.get("SAGEMAKER_SUBMIT_DIRECTORY"):
        env["SAGEMAKER_SUBMIT_DIRECTORY"] = str(model_dir / "code")
    env |= {"SAGEMAKER_BIND_TO_PORT": str(port), "HOST": "127.0.0.1"}
    return Command([*server], env)


def image_run(
    tool: str,
    image: str,
    variables: Mapping[str, str],
    mounts: Mounts,
    port: int,
    environ: Mapping[str, str] = os.environ,
) -> Command:
    """Build the docker or podman command of the image; publishes port 8080 on localhost only."""
    argv = [tool, "run", "--rm", "-p", f"127.0.0.1:{port}:{CONTAINER_PORT}"]
    for inside, outside in mounts.folders.items():
        argv += ["-v", f"{outside}:{inside}:ro"]
    for name, value in variables.items():
        argv += ["-e", f"{name}={value}"]
    env = {name: environ[name] for name in ("PATH", "HOME", "DOCKER_HOST") if name in environ}
    return Command([*argv, image, "serve"], env, sees_mounts=True)


def default_server() -> list[str]:
    """Return the command of the container's server in this checkout. Raises MissingTool."""
    if importlib.util.find_spec("container") and importlib.util.find_spec("torch"):
        return [sys.executable, "-m", "container", "serve"]
    python = Path.cwd() / ".venv" / "bin" / "python"
    if python.exists():
        return [str(python), "-m", "container", "serve"]
    raise MissingTool(
        "the container's server is not installed here",
        hint="run `make serve` once in the checkout, or give --server-command or --image",
    )


def container_tool(preferred: str | None = None) -> str:
    """Return docker or podman, whichever is installed. Raises MissingTool."""
    for tool in [preferred] if preferred else ["docker", "podman"]:
        if shutil.which(tool):
            return tool
    raise MissingTool(
        f"{preferred or 'neither docker nor podman'} is not installed",
        hint="leave --image out to start the server as a process",
    )
