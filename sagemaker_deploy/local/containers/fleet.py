"""The containers behind the local endpoints: their folders, processes and logs.

Owns every process that `local` starts; `stop_all` leaves none.
"""

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagemaker_deploy.local.containers.launch import (
    ADAPTERS_DIR,
    CHANNELS_DIR,
    MODEL_DIR,
    MODELS_DIR,
    Command,
    Mounts,
)
from sagemaker_deploy.local.containers.process import Container, free_port
from sagemaker_deploy.local.containers.storage import Storage

Launch = Callable[[str, Mapping[str, str], Mounts, int], Command]


@dataclass(frozen=True, slots=True)
class Spec:
    """A container to start. `definition` is CreateModel's ContainerDefinition."""

    label: str
    definition: Mapping[str, Any]
    startup_timeout_s: int = 480

    @property
    def is_multi_model(self) -> bool:
        """Whether requests name the model (multi-model endpoint)."""
        return self.definition.get("Mode") == "MultiModel"


class Fleet:
    """Starts and stops containers; `launch` builds their commands (launch.py)."""

    def __init__(self, launch: Launch, storage: Storage, log_dir: Path) -> None:
        self._launch = launch
        self.storage = storage
        self._log_dir = log_dir
        self._folders: dict[Container, Path] = {}
        self._sees_mounts: dict[Container, bool] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    def start(self, spec: Spec) -> Container:
        """Start a container and wait until it is healthy. Raises DeployError after cleaning up."""
        folder = Path(tempfile.mkdtemp(prefix="sagemaker-local-"))
        try:
            mounts = self._mounts(spec, folder)
            container = self._run(spec, mounts, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        try:
            container.wait_healthy(spec.startup_timeout_s)
        except BaseException:
            self.stop(container)
            raise
        return container

    def stop(self, container: Container) -> None:
        """Stop one container and remove its unpacked files."""
        container.stop()
        with self._lock:
            folder = self._folders.pop(container, None)
            self._sees_mounts.pop(container, None)
        if folder:
            shutil.rmtree(folder, ignore_errors=True)

    def add_model(self, container: Container, url: str, model_id: str) -> str:
        """Unpack a model of a multi-model endpoint; return its path inside the container."""
        relative = f"{model_id}/model"
        self.storage.unpack(url, _existing(self._folders[container] / "models" / relative))
        return self._path_inside(container, "models", MODELS_DIR, relative)

    def drop_model(self, container: Container, model_id: str) -> None:
        """Remove the files of a model that is no longer loaded."""
        shutil.rmtree(self._folders[container] / "models" / model_id, ignore_errors=True)

    def add_adapter(self, container: Container, url: str, name: str) -> str:
        """Unpack an adapter in place of an earlier one; return its path inside the container."""
        folder = self._folders[container] / "adapters" / name
        shutil.rmtree(folder, ignore_errors=True)
        self.storage.unpack(url, _existing(folder))
        return self._path_inside(container, "adapters", ADAPTERS_DIR, name)

    def _path_inside(self, container: Container, part: str, inside: str, relative: str) -> str:
        if self._sees_mounts[container]:
            return f"{inside}/{relative}"
        return str(self._folders[container] / part / relative)

    def stop_all(self) -> None:
        """Stop all containers, including starting ones; none starts afterwards."""
        with self._lock:
            self._is_closed = True
            containers = list(self._folders)
        threads = [
            threading.Thread(target=self.stop, args=(container,)) for container in containers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _run(self, spec: Spec, mounts: Mounts, folder: Path) -> Container:
        variables = dict(spec.definition.get("Environment", {}))
        if spec.is_multi_model:
            variables["SAGEMAKER_MULTI_MODEL"] = "true"
        port = free_port()
        command = self._launch(str(spec.definition.get("Image", "")), variables, mounts, port)
        self._log_dir.mkdir(parents=True, exist_ok=True)
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the local endpoint is shutting down")
            log_path = self._log_dir / f"{spec.label.replace('/', '-')}.log"
            container = Container(command, port, log_path)
            self._folders[container] = folder
            self._sees_mounts[container] = command.sees_mounts
        return container

    def _mounts(self, spec: Spec, folder: Path) -> Mounts:
        folders = {ADAPTERS_DIR: _existing(folder / "adapters")}
        if spec.is_multi_model:
            folders[MODELS_DIR] = folder / "models"
            folders[MODELS_DIR].mkdir()
        elif model := self._model_data(spec.definition, folder / "model"):
            folders[MODEL_DIR] = model
        for source in spec.definition.get("AdditionalModelDataSources", []):
            channel = str(source["ChannelName"])
            target = folder / "channels" / channel
            folders[f"{CHANNELS_DIR}/{channel}"] = self._source(source["S3DataSource"], target)
        return Mounts(folders)

    def _model_data(self, definition: Mapping[str, Any], target: Path) -> Path | None:
        if source := definition.get("ModelDataSource"):
            return self._source(source["S3DataSource"], target)
        if url := definition.get("ModelDataUrl"):
            return self.storage.unpack(str(url), _existing(target))
        return None

    def _source(self, source: Mapping[str, Any], target: Path) -> Path:
        url = str(source["S3Uri"])
        if source.get("CompressionType") == "Gzip":
            return self.storage.unpack(url, _existing(target))
        return self.storage.copy_prefix(url, _existing(target))


def _existing(folder: Path) -> Path:
    with contextlib.suppress(FileExistsError):
        folder.mkdir(parents=True)
    return folder
