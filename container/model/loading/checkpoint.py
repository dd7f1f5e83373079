"""Finds a model's files: a folder, or a snapshot of a Hub repository.

A ModelLoadError names the missing file, before the weights are loaded.
"""

import json
import logging
import os
import shutil
import struct
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
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
from container.files import (
    MAX_TEXT_BYTES,
    TEXT_SUFFIXES,
    WEIGHT_SUFFIXES,
    find_unreadable,
    read_json,
)
from container.ipc.backend_server import Progress
from container.model.formats.checkpoint import is_gguf
from container.model.formats.gguf_files import SUFFIX as GGUF_SUFFIX
from container.model.formats.gguf_files import write_folder
from container.model.hf_config import find_unusable
from container.model.progress_bars import download_bar
from container.settings.process_env import RANKS_FOLDER, model_root, outward_links

log = logging.getLogger(__name__)

TEXT_FILES = [*(f"*{suffix}" for suffix in TEXT_SUFFIXES), "*.py"]
# Files that a frontend does not need; nor does it need any larger one.
ALL_WEIGHT_SUFFIXES = (
    *WEIGHT_SUFFIXES, ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".ot",
)  # fmt: skip
TOKENIZER_FILES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")
# Classes of tokenizers that have no file besides their configuration.
BYTE_TOKENIZERS = ("ByT5Tokenizer", "PerceiverTokenizer", "CanineTokenizer")
# The files that transformers loads by their names.
NAMED_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"
# The most that a safetensors file may have in front of its tensors, by the format.
MAX_HEADER_BYTES = 100_000_000
# Files beside the weights of a model that trainers and converters leave: other things, or copies.
NOT_WEIGHTS = ("adapter", "training", "optimizer", "scheduler", "random_states", "consolidated")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A checked folder with a model's files. `sha` is the Hub's commit, if it came from there."""

    model_id: str
    path: Path
    sha: str | None

    def config(self) -> Any:
        """Read config.json."""
        return read_json(self.path / "config.json")


def find_model(
    model_id: str,
    *,
    revision: str | None,
    token: str | None,
    variable: str = "HF_MODEL_ID",
    reads_gguf: bool = False,
    progress: Progress | None = None,
) -> ModelFiles:
    """Check a folder or a GGUF file, or download a repository. Raises ModelLoadError.

    `variable` is the one that named the model, for messages; `progress` is that of a download.
    """
    folder = Path(model_id).expanduser()
    if reads_gguf and ((folder.suffix == GGUF_SUFFIX and folder.is_file()) or is_gguf(folder)):
        refuse_files(folder if folder.is_dir() else folder.parent)
        written = write_folder(folder.absolute(), os.environ.get(RANKS_FOLDER))
        return _checked(ModelFiles(model_id, written, None))
    if folder.is_dir():
        files = ModelFiles(model_id, model_root(folder.resolve()), None)
        refuse_files(files.path)
        return _checked(files)
    if folder.is_absolute() or model_id.startswith((".", "~")) or model_id.count("/") > 1:
        raise ModelLoadError(
            f"{variable}={model_id}: there is no such folder; check the path (in a container, the "
            "volume that is mounted there), or give a name on the Hub, such as org/model"
        )
    path = _download(model_id, revision, token, variable, progress)
    refuse_files(path)
    return _checked(ModelFiles(model_id, path, path.name))


def copy_text_files(files: ModelFiles, folder: Path) -> Path:
    """Copy all but weights to where no one else deletes them; return that folder.

    A frontend that starts later reads them there. Without room the model's own folder must do.
    """
    try:
        for path in files.path.rglob("*"):
            is_weights = path.suffix in ALL_WEIGHT_SUFFIXES
            if is_weights or not path.is_file() or path.stat().st_size > MAX_TEXT_BYTES:
                continue
            target = folder / path.relative_to(files.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    except OSError as error:
        log.warning(
            "model files: not copied to %s (%s); frontends that start later need %s itself",
            folder, error, files.path,
        )  # fmt: skip
        shutil.rmtree(folder, ignore_errors=True)
        return files.path
    return folder


def _download(
    model_id: str,
    revision: str | None,
    token: str | None,
    variable: str,
    progress: Progress | None,
) -> Path:
    bar = None if progress is None else download_bar(progress, f"downloading {model_id}")
    fetch = partial(snapshot_download, model_id, revision=revision, token=token, tqdm_class=bar)
    try:
        path = Path(fetch(allow_patterns=[*TEXT_FILES, "*.safetensors"]))
        if not any(path.glob("*.safetensors")):
            log.info("%s has no safetensors files; downloading its .bin weights", model_id)
            fetch(allow_patterns=["*.bin"])
    except GatedRepoError as error:
        raise ModelLoadError(
            f"{model_id} is gated: accept its terms on the Hub and set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelLoadError(
            f"{model_id} has no revision {revision!r}; name one of its branches, tags or commits, "
            "or unset it"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelLoadError(
            f"{model_id} is neither a folder here nor a repository on the Hub "
            "(a private one needs HF_TOKEN)"
        ) from error
    except HFValidationError as error:
        raise ModelLoadError(
            f"{variable}={model_id!r} is not a folder or a Hub id; give a path, or org/model"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelLoadError(
            f"{model_id} is not a folder here, and the Hub cannot be reached "
            f"({type(error).__name__}); give a folder, or fill the cache that HF_HOME names"
        ) from error
    return path


def refuse_files(path: Path) -> None:
    """Raise ModelLoadError if a link leads out of the model's folder, or a file cannot be read."""
    if links := outward_links(path):
        raise ModelLoadError(
            f"{links[0]} is a link that leads out of the model's folder; copy the file into it"
        )
    if (unreadable := find_unreadable(path)) is not None:
        raise ModelLoadError(unreadable)


def _checked(files: ModelFiles) -> ModelFiles:
    path = files.path
    if not (path / "config.json").is_file():
        hint = "; the folder must hold a model as save_pretrained writes it, or one GGUF file"
        if any(path.glob("*.tar.gz")):
            hint = "; it holds an archive: unpack it"
        elif (path / "adapter_config.json").is_file():
            hint = "; it holds an adapter, not a whole model"
        raise ModelLoadError(f"{path}: config.json is missing{hint}")
    try:
        config = files.config()
    except ValueError as error:
        raise ModelLoadError(f"{path}/config.json is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelLoadError(f"{path}/config.json is not a JSON object")
    if not any(_weight_files(path, suffix) for suffix in (".safetensors", ".bin", GGUF_SUFFIX)):
        raise ModelLoadError(
            f"{path}: the weights are missing (no *.safetensors and no *.bin); copy them beside "
            "config.json"
        )
    if (problem := find_unusable(config, _num_tensors(path))) is not None:
        raise ModelLoadError(f"{path}/config.json cannot be used: {problem}")
    if not any(any(path.glob(name)) for name in TOKENIZER_FILES) and not _needs_no_file(path):
        raise ModelLoadError(
            f"{path}: the tokenizer is missing (none of {', '.join(TOKENIZER_FILES)}); copy its "
            "files from where the model came from, or save it with save_pretrained"
        )
    return files


def _needs_no_file(path: Path) -> bool:
    """Whether tokenizer_config.json names a class without files, or code of the model's own."""
    try:
        config = read_json(path / "tokenizer_config.json")
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and (
        config.get("tokenizer_class") in BYTE_TOKENIZERS or "auto_map" in config
    )


def loadable(folder: Path, links_in: str | None = None) -> Path:
    """Return a folder from which transformers loads the weights of this one.

    It knows weights by their names. Shards without an index and weights under other names get an
    index, in a new folder of links below `links_in`. Raises ModelLoadError.
    """
    if any(_has_standard_name(folder, named) for named in NAMED_WEIGHTS):
        return folder
    for named in NAMED_WEIGHTS:
        if files := _weight_files(folder, Path(named).suffix):
            links = Path(tempfile.mkdtemp(prefix="weights-", dir=links_in))
            for path in folder.iterdir():
                (links / path.name).symlink_to(path)
            names = ", ".join(path.name for path in files)
            log.info("the weights have no index and not the usual name; loading %s", names)
            (links / (named + INDEX)).write_text(json.dumps(_index(files)))
            return links
    return folder


def _index(files: Iterable[Path]) -> dict[str, Any]:
    """Write what an index has: the file of each tensor."""
    file_by_tensor: dict[str, str] = {}
    for path in files:
        for name in _tensor_names(path):
            if name in file_by_tensor:
                raise ModelLoadError(
                    f"{path.parent}: {file_by_tensor[name]} and {path.name} both have the tensor "
                    f"{name}; leave one copy of the weights in the folder"
                )
            file_by_tensor[name] = path.name
    return {"metadata": {}, "weight_map": file_by_tensor}


def _tensor_names(path: Path) -> list[str]:
    """Read the names of a file's tensors. Raises ModelLoadError."""
    try:
        if path.suffix == ".bin":
            return list(torch.load(path, map_location="meta", mmap=True, weights_only=True))
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > MAX_HEADER_BYTES:
                raise ValueError(f"its header would have {size} bytes")
            header = json.loads(file.read(size))
        return [name for name in header if name != "__metadata__"]
    except Exception as error:  # a broken file fails anywhere
        raise ModelLoadError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _num_tensors(folder: Path) -> int | None:
    """Count the tensors of a model's files; None if there are none, or one cannot be read.

    Files with the usual names are loaded before all others.
    """
    for named in sorted(NAMED_WEIGHTS, key=lambda named: not _has_standard_name(folder, named)):
        if files := _weight_files(folder, Path(named).suffix):
            try:
                return sum(len(_tensor_names(path)) for path in files)
            except ModelLoadError:
                return None  # whoever loads the file reports it
    return None


def _has_standard_name(folder: Path, named: str) -> bool:
    """Whether there are weights, or an index of them, under a name that transformers looks for."""
    return any((folder / (named + end)).is_file() for end in ("", INDEX))


def _weight_files(folder: Path, suffix: str) -> list[Path]:
    """List the files of this kind that trainers and converters have not left beside the weights."""
    paths = sorted(folder.glob(f"*{suffix}"))
    return [p for p in paths if p.is_file() and not p.name.startswith(NOT_WEIGHTS)]
