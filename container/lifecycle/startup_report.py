"""The startup report: lines about the model, the machine and the environment variables.

Reads files and the environment, loads nothing. A probable mistake is a warning that names the
remedy.
"""

import difflib
import importlib.metadata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from container.errors import ConfigError
from container.files import WEIGHT_SUFFIXES, file_sizes, read_json
from container.handlers.user_code import find_code, missing_code
from container.lifecycle.other_handlers import other_handlers
from container.machine import Gpu, free_memory_bytes
from container.settings.model import EmbeddingSettings, ModelSettings
from container.settings.other_images import with_counterpart
from container.settings.process_env import ADDITIONAL_DATA, SAGEMAKER_MODEL_DIR, model_root
from container.settings.server import HandlerSettings
from container.settings.settings import REFUSED, overridden_names, setting_names
from container.settings.tgi import WITHOUT_EFFECT

GIB = 2**30
# Variables that SageMaker, its SDK or its images set and that this server ignores.
PLATFORM = frozenset({
    "SAGEMAKER_REGION", "SAGEMAKER_SAFE_PORT_RANGE", "SAGEMAKER_ENV",
    "SAGEMAKER_MODEL_SERVER_VMARGS", "SAGEMAKER_BASE_DIR", "SAGEMAKER_ENABLE_LOAD_AWARE",
    "SAGEMAKER_MODEL_SERVER_TIMEOUT",
    "HF_HOME", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HOSTNAME", "TMPDIR",
})  # fmt: skip
# How the variables of other images begin: LMI's, vLLM's, SGLang's, the Hugging Face toolkit's.
OTHER_IMAGES = (
    "OPTION_", "SERVING_", "SM_VLLM_", "SM_SGLANG_", "SM_LLAMA_CPP_", "HF_OPTIMUM_",
    "CUSTOM_FASTAPI_", "CUSTOM_PRE_PROCESS", "CUSTOM_POST_PROCESS", "CUSTOM_SCRIPT_FILENAME",
)  # fmt: skip
# A variable this similar to a known name counts as a misspelling of it.
LIKENESS = 0.86


@dataclass(frozen=True, slots=True)
class ReportLine:
    """One line of the report; `is_warning` for a probable mistake."""

    text: str
    is_warning: bool = False


def model_lines(
    model: ModelSettings, embedding: EmbeddingSettings, handlers: HandlerSettings
) -> Iterator[ReportLine]:
    """Yield the lines about the model, the embedding model, user code and additional data."""
    yield from _model(model)
    yield from _embedding_model(embedding, model.task)
    yield from _code(handlers, model.model_id)
    yield from _additional_data()


def machine_lines(num_gpus: int | None, gpus: list[Gpu]) -> Iterator[ReportLine]:
    """Yield the lines about processors, memory and GPUs; `num_gpus` is SM_NUM_GPUS."""
    memory = psutil.virtual_memory()
    yield ReportLine(
        f"machine: {psutil.cpu_count()} processors, {free_memory_bytes() / GIB:.1f} of "
        f"{memory.total / GIB:.1f} GiB memory free"
    )
    yield from (ReportLine(f"GPU: {gpu}") for gpu in gpus)
    yield from torch_lines(num_gpus, gpus)


def torch_lines(num_gpus: int | None, gpus: list[Gpu]) -> Iterator[ReportLine]:
    """Yield the lines about torch's version, and whether it can use the GPUs."""
    version = importlib.metadata.version("torch")
    if gpus and "+cpu" in version:
        yield ReportLine(
            f"torch {version} cannot use them: build the image for CUDA", is_warning=True
        )
    elif gpus:
        yield ReportLine(f"torch {version}")
    else:
        yield ReportLine(f"no GPU is visible; torch {version}")
        if num_gpus:
            yield ReportLine(
                f"SM_NUM_GPUS={num_gpus}, but this machine has no GPU: the model is served on the "
                "CPU; take an instance with a GPU, or set SM_NUM_GPUS=0",
                is_warning=True,
            )


def variable_lines(environ: Mapping[str, str]) -> Iterator[ReportLine]:
    """Yield the lines about variables that have no effect, or may be misspelt."""
    if names := overridden_names(environ):
        yield ReportLine(f"set, but another name of the same setting wins: {', '.join(names)}")
    known = {*setting_names(), *REFUSED, *WITHOUT_EFFECT, *PLATFORM}
    empty = sorted(name for name in known & environ.keys() if not environ[name].strip())
    if empty:
        yield ReportLine(f"empty variables, which count as unset: {', '.join(empty)}")
    if environ.get("EMF_DIMENSIONS", "").strip() and not environ.get("EMF_NAMESPACE", "").strip():
        yield ReportLine(
            "EMF_DIMENSIONS has no effect, since no metrics are written without EMF_NAMESPACE; "
            "set it too",
            is_warning=True,
        )
    others = sorted(name for name in environ.keys() - known if name.startswith(OTHER_IMAGES))
    if others:
        yield ReportLine(
            f"variables of other images, without effect here: "
            f"{', '.join(map(with_counterpart, others))}; docs/migrating-from-other-images.md",
            is_warning=True,
        )
    for name in sorted(environ.keys() - known - set(others)):
        near = difflib.get_close_matches(name, known, 1, LIKENESS)
        if near:
            yield ReportLine(f"{name} is not known; did you mean {near[0]}?", is_warning=True)


def _model(settings: ModelSettings) -> Iterator[ReportLine]:
    if settings.model_id:
        folder = Path(settings.model_id).expanduser()
        where = "a folder" if folder.is_dir() else "from the Hub"
        yield ReportLine(f"model: {settings.model_id} ({where}; HF_MODEL_ID is set)")
        if SAGEMAKER_MODEL_DIR.is_dir() and (SAGEMAKER_MODEL_DIR / "config.json").is_file():
            yield ReportLine(
                f"{SAGEMAKER_MODEL_DIR} also holds a model, which is NOT served because "
                "HF_MODEL_ID is set; unset it to serve that one",
                is_warning=folder.resolve() != SAGEMAKER_MODEL_DIR,
            )
    else:
        try:
            folder = Path(settings.model_source())
        except ConfigError:
            return  # user code may do without one; otherwise the start ends with this error
        yield ReportLine(f"model: {folder} (HF_MODEL_ID is not set)")
    if folder.is_dir():
        yield from _files(folder)


def _embedding_model(settings: EmbeddingSettings, task: str | None) -> Iterator[ReportLine]:
    if settings.embedding_model_id:
        yield ReportLine(
            f"embedding model: {settings.embedding_model_id} (EMBEDDING_MODEL_ID is set)"
        )
    elif settings.is_for_task(task):
        yield ReportLine(f"HF_TASK={task}: the model is served as an embedding model")


def _files(folder: Path) -> Iterator[ReportLine]:
    inner = model_root(folder)
    if inner != folder:
        yield ReportLine(f"the model's files are in the folder {inner.name} of the archive")
    sizes = list(file_sizes(inner))
    weights = [size for name, size in sizes if name.endswith(WEIGHT_SUFFIXES)]
    size = sum(weights)
    config = _config(inner)
    architectures = config.get("architectures")
    names = ", ".join(map(str, architectures)) if isinstance(architectures, list) else ""
    kind = names or config.get("model_type", "unknown kind")
    dtype = config.get("dtype") or config.get("torch_dtype") or "no dtype named"
    yield ReportLine(
        f"files: {len(sizes)}, of which {len(weights)} with {size / GIB:.2f} GiB of weights; "
        f"{kind}, {dtype}"
    )
    free = free_memory_bytes()
    if size > free:
        yield ReportLine(
            f"the weights have {size / GIB:.1f} GiB and {free / GIB:.1f} GiB of memory are free: "
            "take a larger instance",
            is_warning=True,
        )
    if (inner / "inference.py").is_file():
        yield ReportLine(
            f"{inner / 'inference.py'} is not used: user code belongs in the folder code/",
            is_warning=True,
        )
    for path, owner in other_handlers(inner):
        yield ReportLine(
            f"{path} is not used: it is {owner}; this server's user code is code/inference.py, "
            "and its settings are environment variables (docs/user-code.md)",
            is_warning=True,
        )


def _code(settings: HandlerSettings, model_id: str | None) -> Iterator[ReportLine]:
    if (missing := missing_code(settings, model_id)) is not None:
        yield ReportLine(missing, is_warning=True)
    code = find_code(settings, model_id)
    if code is None:
        return
    hooks = ", ".join(sorted(code.hooks)) or "no functions that are known"
    model = "its own model" if code.loads_own_model else "the built-in engine as its model"
    yield ReportLine(f"user code: {code.path} ({hooks}; {model})", is_warning=not code.hooks)


def _additional_data() -> Iterator[ReportLine]:
    if ADDITIONAL_DATA.is_dir():
        channels = ", ".join(sorted(path.name for path in ADDITIONAL_DATA.iterdir()))
        yield ReportLine(f"additional model data: {channels or 'none'}")


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
