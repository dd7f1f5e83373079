"""Finds a model's files: a folder, or a snapshot of a Hub repository.

A ModelLoadError names the missing file, before the weights are loaded.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from container.errors import ModelLoadError
from container.settings.process_env import model_root

log = logging.getLogger(__name__)

TEXT_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A checked folder with a model's files. `sha` is the Hub's commit, if it came from there."""

    model_id: str
    path: Path
    sha: str | None

    def config(self) -> Any:
        """Read config.json."""
        return json.loads((self.path / "config.json").read_text())


def find_model(
    model_id: str, *, revision: str | None, token: str | None, variable: str = "HF_MODEL_ID"
) -> ModelFiles:
    """Check a folder, or download a repository. Raises ModelLoadError.

    `variable` is the one that named the model, for messages.
    """
    folder = Path(model_id).expanduser()
    if folder.is_dir():
        return _checked(ModelFiles(model_id, model_root(folder.resolve()), None))
    if folder.is_absolute() or model_id.startswith((".", "~")) or model_id.count("/") > 1:
        raise ModelLoadError(f"{variable}={model_id}: there is no such folder")
    path = _download(model_id, revision, token, variable)
    return _checked(ModelFiles(model_id, path, path.name))


def _download(model_id: str, revision: str | None, token: str | None, variable: str) -> Path:
    try:
        path = Path(
            snapshot_download(
                model_id, revision=revision, token=token,
                allow_patterns=[*TEXT_FILES, "*.safetensors"],
            )
        )  # fmt: skip
        if not any(path.glob("*.safetensors")):
            log.info("%s has no safetensors files; downloading its .bin weights", model_id)
            snapshot_download(model_id, revision=revision, token=token, allow_patterns=["*.bin"])
    except GatedRepoError as error:
        raise ModelLoadError(
            f"{model_id} is gated: accept its terms on the Hub and set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelLoadError(f"{model_id} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise ModelLoadError(
            f"{model_id} is neither a folder here nor a repository on the Hub "
            "(a private one needs HF_TOKEN)"
        ) from error
    except HFValidationError as error:
        raise ModelLoadError(f"{variable}={model_id!r} is not a folder or a Hub id") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelLoadError(
            f"{model_id} is not a folder here, and the Hub cannot be reached "
            f"({type(error).__name__}); give a folder, or fill the cache that HF_HOME names"
        ) from error
    return path


def _checked(files: ModelFiles) -> ModelFiles:
    path = files.path
    if not (path / "config.json").is_file():
        hint = ""
        if any(path.glob("*.tar.gz")):
            hint = "; it holds an archive: unpack it"
        elif (path / "adapter_config.json").is_file():
            hint = "; it holds an adapter, not a whole model"
        raise ModelLoadError(f"{path}: config.json is missing{hint}")
    try:
        is_object = isinstance(files.config(), dict)
    except ValueError as error:
        raise ModelLoadError(f"{path}/config.json is not valid JSON: {error}") from error
    if not is_object:
        raise ModelLoadError(f"{path}/config.json is not a JSON object")
    if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
        raise ModelLoadError(f"{path}: the weights are missing (no *.safetensors and no *.bin)")
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise ModelLoadError(
            f"{path}: the tokenizer is missing (none of {', '.join(TOKENIZER_FILES)})"
        )
    return files
