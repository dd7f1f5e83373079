"""Loads an embedder with its model from settings: the composition root of the embedder process."""

import ctypes
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import (
    CrossEncoder,
    MultiVectorEncoder,
    SentenceTransformer,
    SparseEncoder,
)

from container.embedding.process import EmbedderBackend, EmbedderLimits
from container.errors import ModelLoadError
from container.files import read_json
from container.ipc.backend_server import Progress
from container.messages.embedder import EmbedderInfo, EmbedderKind
from container.model.embedding.embedder import Embedder
from container.model.embedding.text_encoder import EncodedText, Model
from container.model.fallbacks import TRY_ANOTHER_DTYPE, Fallbacks
from container.model.kernels.cpu import Kernels
from container.model.loading.checkpoint import ModelFiles, find_model
from container.model.loading.config import choose_dtype
from container.model.loading.cpu_kernels import load_kernels
from container.model.parallel.placement import num_gpus
from container.model.progress_bars import followed_loading
from container.model.reference_check import Mismatch
from container.settings.settings import Settings

log = logging.getLogger(__name__)

# On a CPU larger batches are not faster, and delay other requests (docs/LOG.md).
BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}
# mallopt options of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MODEL_CLASSES: dict[str, type[Model]] = {
    "SentenceTransformer": SentenceTransformer,
    "CrossEncoder": CrossEncoder,
    "SparseEncoder": SparseEncoder,
    "MultiVectorEncoder": MultiVectorEncoder,
    "ColBERT": MultiVectorEncoder,  # PyLate's name
}
# A projection with this name beside the encoder's weights is that of Stanford's ColBERT.
STANFORD_COLBERT = "HF_ColBERT"
# Fields of folders that PyLate wrote before they named their kind.
PYLATE_FIELDS = frozenset({"query_prefix", "document_prefix"})


def load_embedder(settings: Settings, progress: Progress) -> EmbedderBackend[EncodedText]:
    """Find, load and check the embedding model. Raises ModelLoadError or ConfigError."""
    source = settings.embedding_source()
    assert source is not None
    device = choose_device(settings.placement.num_gpus)
    dtype = choose_dtype(settings.model.dtype, device)
    progress(f"looking for {source.model_id}")
    files = find_model(
        source.model_id,
        revision=source.revision,
        token=settings.model.hf_token,
        variable=source.variable,
        progress=progress,
    )
    stage = f"loading the embedding model as {_name(dtype)} on {device.type}"
    progress(stage)
    keep_memory()
    fallbacks = Fallbacks("embedder")

    def load() -> Model:
        with followed_loading(progress, stage):
            return load_model(
                files.path, device, dtype, trust_remote_code=settings.model.trust_remote_code
            )

    kernels = load_kernels(fallbacks) if device.type == "cpu" else None
    embedder, width = prepare_embedder(load, device, kernels, fallbacks, progress)
    if settings.engine.require_fast_path:
        fallbacks.refuse()
    info = _info(files, embedder, width, fallbacks)
    limits = EmbedderLimits(
        settings.embedding.max_batch_tokens or BATCH_TOKENS.get(device.type, 1024),
        settings.engine.max_concurrent_requests,
    )
    log.info("%s model: width %d, at most %d tokens", info.kind, width, info.max_input_tokens)
    return EmbedderBackend(embedder, info, limits)


def prepare_embedder(
    load: Callable[[], Model],
    device: torch.device,
    kernels: Kernels | None,
    fallbacks: Fallbacks,
    progress: Progress,
) -> tuple[Embedder, int]:
    """Load and check the embedder; return it and the width of its rows. Raises ModelLoadError.

    If its packed layers are refused, it is loaded again without them.
    """
    embedder = Embedder(load(), device, kernels, fallbacks)
    progress("checking the embedding model")
    try:
        return embedder, embedder.prepare()
    except Mismatch as error:
        fallbacks.add("packed layers", f"disabled: {error}", TRY_ANOTHER_DTYPE)
    embedder = Embedder(load(), device, kernels, fallbacks)
    return embedder, embedder.prepare(packs=False)


def choose_device(requested_gpus: int | None) -> torch.device:
    """Choose the first GPU if the settings allow one, else the CPU. Raises ConfigError."""
    return torch.device("cuda" if num_gpus(requested_gpus, torch.cuda.device_count()) else "cpu")


def load_model(
    path: Path, device: torch.device, dtype: torch.dtype, *, trust_remote_code: bool = False
) -> Model:
    """Load a folder's model with sentence-transformers. Raises ModelLoadError."""
    kind = _model_class(path)
    try:
        return kind(
            str(path),
            device=device.type,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            model_kwargs={"dtype": dtype},
        ).eval()
    except Exception as error:  # a broken checkpoint can raise anything
        raise ModelLoadError(f"{path}: the embedding model cannot be loaded: {error}") from error


def keep_memory() -> None:
    """Make glibc keep freed memory for the next batch.

    Otherwise every tensor over 128 KiB gets new pages, which the kernel must zero each time: 10 to
    20% of a batch's time (docs/LOG.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc
        for option, size in ((M_MMAP_THRESHOLD, 2**25), (M_TRIM_THRESHOLD, 2**29)):
            mallopt(option, size)


def _model_class(path: Path) -> type[Model]:
    """Return the sentence-transformers class of a folder's model. Raises ModelLoadError."""
    config = _read_json(path / "config_sentence_transformers.json")
    model_type = config.get("model_type")
    architectures = _read_json(path / "config.json").get("architectures") or [""]
    if architectures[0].endswith("ForRetrieval"):
        raise ModelLoadError(
            f"{path}: {architectures[0]} embeds images of pages; only models of texts are served"
        )
    if model_type is not None and model_type not in MODEL_CLASSES:
        raise ModelLoadError(
            f"{path}: a {model_type} model; only {' and '.join(MODEL_CLASSES)} models are served"
        )
    if not PYLATE_FIELDS.isdisjoint(config) or architectures[0] == STANFORD_COLBERT:
        return MultiVectorEncoder
    if model_type is not None:
        return MODEL_CLASSES[model_type]
    if "colbert" in architectures[0].lower():
        raise ModelLoadError(
            f"{path}: the architecture {architectures[0]} is not known; of late-interaction "
            "models, those of sentence-transformers, PyLate and Stanford's "
            f"{STANFORD_COLBERT} are served"
        )
    is_classifier = architectures[0].endswith("ForSequenceClassification")
    has_modules = (path / "modules.json").is_file()
    return CrossEncoder if is_classifier and not has_modules else SentenceTransformer


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = read_json(path) if path.is_file() else {}
    except ValueError as error:
        raise ModelLoadError(f"{path} is not valid JSON: {error}") from error
    return value


def _info(files: ModelFiles, embedder: Embedder, width: int, fallbacks: Fallbacks) -> EmbedderInfo:
    config = embedder.config
    labels = list((config.id2label or {}).values()) if embedder.is_scoring else []
    kind: EmbedderKind = "sparse" if embedder.is_sparse else "embedding"
    if embedder.is_late_interaction:
        kind = "late_interaction"
    if embedder.is_scoring:
        kind = "reranker" if width == 1 else "classifier"
    return EmbedderInfo(
        model_id=files.model_id,
        model_sha=files.sha,
        model_type=config.model_type,
        kind=kind,
        dtype=_name(embedder.dtype),
        device=embedder.device.type,
        width=width,
        vocabulary=embedder.vocabulary,
        max_input_tokens=embedder.max_tokens,
        is_normalized=embedder.shape.is_normalized,
        labels=labels,
        prompts=embedder.prompts,
        is_mean_similarity=embedder.is_mean_similarity,
        fallbacks=[*fallbacks.lines],
        not_proved=[*fallbacks.not_proved],
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
