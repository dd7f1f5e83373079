"""The startup report: lines about the model, the machine and the environment variables.

Reads files and the environment, loads nothing. Each finding is a line; a probable mistake is a
warning that names the remedy.
"""

import difflib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from container.errors import ConfigError
from container.handlers.user_code import find_code, missing_code
from container.lifecycle.other_handlers import other_handlers
from container.machine import free_memory_bytes, visible_gpus
from container.settings.model import ModelSettings
from container.settings.process_env import ADDITIONAL_DATA, SAGEMAKER_MODEL_DIR, model_root
from container.settings.server import HandlerSettings
from container.settings.settings import (
    REFUSED,
    Settings,
    overridden_names,
    setting_names,
)
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
class Finding:
    """One line of the report; `is_warning` for a probable mistake."""

    text: str
    is_warning: bool = False


def diagnose(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    """Collect the findings about model, code, machine and variables."""
    return [
        *_model(settings.model),
        *_embedding_model(
            settings.embedding.embedding_model_id,
            settings.model.task if settings.is_embedding_task else None,
        ),
        *_code(settings.handlers, settings.model.model_id),
        *_additional_data(),
        *_machine(settings.placement.num_gpus),
        *_variables(environ),
    ]


def _model(settings: ModelSettings) -> Iterator[Finding]:
    if settings.model_id:
        folder = Path(settings.model_id).expanduser()
        where = "a folder" if folder.is_dir() else "from the Hub"
        yield Finding(f"model: {settings.model_id} ({where}; HF_MODEL_ID is set)")
        if SAGEMAKER_MODEL_DIR.is_dir() and (SAGEMAKER_MODEL_DIR / "config.json").is_file():
            yield Finding(
                f"{SAGEMAKER_MODEL_DIR} also holds a model, which is NOT served because "
                "HF_MODEL_ID is set; unset it to serve that one",
                is_warning=folder.resolve() != SAGEMAKER_MODEL_DIR,
            )
    else:
        try:
            folder = Path(settings.model_source())
        except ConfigError:
            return  # user code may do without one; otherwise the start ends with this error
        yield Finding(f"model: {folder} (HF_MODEL_ID is not set)")
    if folder.is_dir():
        yield from _files(folder)


def _embedding_model(model_id: str | None, task: str | None) -> Iterator[Finding]:
    if model_id:
        yield Finding(f"embedding model: {model_id} (EMBEDDING_MODEL_ID is set)")
    elif task is not None:
        yield Finding(f"HF_TASK={task}: the model is served as an embedding model")


def _files(folder: Path) -> Iterator[Finding]:
    inner = model_root(folder)
    if inner != folder:
        yield Finding(f"the model's files are in the folder {inner.name} of the archive")
    files = [path for path in inner.rglob("*") if path.is_file()]
    weights = [path for path in files if path.suffix in (".safetensors", ".bin", ".gguf")]
    size = sum(path.stat().st_size for path in weights)
    config = _config(inner)
    kind = ", ".join(config.get("architectures") or []) or config.get("model_type", "unknown kind")
    dtype = config.get("dtype") or config.get("torch_dtype") or "no dtype named"
    yield Finding(
        f"files: {len(files)}, of which {len(weights)} with {size / GIB:.2f} GiB of weights; "
        f"{kind}, {dtype}"
    )
    free = free_memory_bytes()
    if size > free:
        yield Finding(
            f"the weights have {size / GIB:.1f} GiB and {free / GIB:.1f} GiB of memory are free: "
            "take a larger instance",
            is_warning=True,
        )
    if (inner / "inference.py").is_file():
        yield Finding(
            f"{inner / 'inference.py'} is not used: user code belongs in the folder code/",
            is_warning=True,
        )
    for path, owner in other_handlers(inner):
        yield Finding(
            f"{path} is not used: it is {owner}; this server's user code is code/inference.py, "
            "and its settings are environment variables (docs/user-code.md)",
            is_warning=True,
        )


def _code(settings: HandlerSettings, model_id: str | None) -> Iterator[Finding]:
    if (missing := missing_code(settings, model_id)) is not None:
        yield Finding(missing, is_warning=True)
    code = find_code(settings, model_id)
    if code is None:
        return
    hooks = ", ".join(sorted(code.hooks)) or "no functions that are known"
    model = "its own model" if code.loads_own_model else "the built-in engine as its model"
    yield Finding(f"user code: {code.path} ({hooks}; {model})", is_warning=not code.hooks)


def _additional_data() -> Iterator[Finding]:
    if ADDITIONAL_DATA.is_dir():
        channels = ", ".join(sorted(path.name for path in ADDITIONAL_DATA.iterdir()))
        yield Finding(f"additional model data: {channels or 'none'}")


def _machine(num_gpus: int | None) -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    yield Finding(
        f"machine: {psutil.cpu_count()} processors, {free_memory_bytes() / GIB:.1f} of "
        f"{memory.total / GIB:.1f} GiB memory free"
    )
    torch_version = importlib.metadata.version("torch")
    gpus = visible_gpus()
    for gpu in gpus:
        memory_gib = gpu.memory_bytes / GIB
        yield Finding(f"GPU: {gpu.name}, {memory_gib:.0f} GiB, driver {gpu.driver}")
    if gpus and "+cpu" in torch_version:
        yield Finding(
            f"torch {torch_version} cannot use them: build the image for CUDA", is_warning=True
        )
    elif not gpus:
        yield Finding(f"no GPU is visible; torch {torch_version}")
        if num_gpus:
            yield Finding(
                f"SM_NUM_GPUS={num_gpus}, but this machine has no GPU: the model is served on the "
                "CPU; take an instance with a GPU, or set SM_NUM_GPUS=0",
                is_warning=True,
            )
    else:
        yield Finding(f"torch {torch_version}")


def _variables(environ: Mapping[str, str]) -> Iterator[Finding]:
    if names := overridden_names(environ):
        yield Finding(f"set, but another name of the same setting wins: {', '.join(names)}")
    known = {*setting_names(), *REFUSED, *WITHOUT_EFFECT, *PLATFORM}
    empty = sorted(name for name in known & environ.keys() if not environ[name].strip())
    if empty:
        yield Finding(f"empty variables, which count as unset: {', '.join(empty)}")
    others = sorted(name for name in environ.keys() - known if name.startswith(OTHER_IMAGES))
    if others:
        yield Finding(
            f"variables of other images, without effect here: {', '.join(others)}; "
            "docs/configuration.md has this server's",
            is_warning=True,
        )
    for name in sorted(environ.keys() - known - set(others)):
        near = difflib.get_close_matches(name, known, 1, LIKENESS)
        if near:
            yield Finding(f"{name} is not known; did you mean {near[0]}?", is_warning=True)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
