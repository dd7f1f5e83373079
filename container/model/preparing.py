"""Preparing: how a loaded model is served, decided by trying, and checked before it serves.

Paged attention where the model allows it; else the model's own cache, one sequence after another.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PretrainedConfig, PreTrainedModel

from container.engine.batch import ModelRunner
from container.engine.loop import EngineConfig
from container.errors import ConfigError, ModelLoadError
from container.images.reader import ReadPrompt
from container.model import kv_cache, own_cache
from container.model.forward_plan import MIN_ROWS, ForwardPlan
from container.model.graphs import graph_recorder, usual_sizes
from container.model.hf_config import text_config
from container.model.host_cache import HostCache
from container.model.image_text import ImageTextRunner, check_images
from container.model.int8 import RowKinds
from container.model.kernels import find_kernels
from container.model.kv_cache import KVCache, LayerShape
from container.model.lora import Updates
from container.model.own_cache import OwnCacheRunner
from container.model.packing import name_linears
from container.model.paging import CannotPage, is_spread, page
from container.model.reference_check import Mismatch, usable_ids
from container.model.runner import ForwardPass, TorchModelRunner
from container.model.sharding import is_split
from container.model.varlen import REFERENCE_ONLY, AttentionKernels, Kernel

log = logging.getLogger(__name__)

NOT_PAGED = "requests run one after another, since this model's attention is not paged"
# What attends to decodes without asking on the host how long they are.
RECORDABLE = {Kernel.PAGED, Kernel.TRITON}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that has been checked, with what the engine needs to know of it.

    `layers` is None when it is served through its own cache. `reads_images`: also images.
    `cache_dtype` is that of the paged cache, if not `dtype`. `kernels` attend to it. `fallbacks`
    are the reasons for which it is served more slowly than it could be.
    """

    module: PreTrainedModel
    config: PretrainedConfig
    dtype: torch.dtype
    device: torch.device
    layers: list[LayerShape] | None
    bytes_per_token: int
    bytes_per_sequence: int = 0
    cache_dtype: torch.dtype | None = None
    weight_bytes: int = 0
    kinds: RowKinds | None = None
    reads_images: bool = False
    kernels: AttentionKernels = REFERENCE_ONLY
    fallbacks: tuple[str, ...] = ()

    @property
    def can_record(self) -> bool:
        """Whether a step of decodes can become a CUDA graph: its kernels read no lengths."""
        is_whole = not (is_spread(self.module) or self.layers is None)
        return is_whole and self.kernels.decodes in RECORDABLE

    @property
    def attention(self) -> Literal["paged", "own"]:
        """Which way serves it."""
        return "own" if self.layers is None else "paged"

    @property
    def text_config(self) -> PretrainedConfig:
        """The configuration of its language model."""
        return text_config(self.config)

    @property
    def has_encoder(self) -> bool:
        """Whether the prompt goes through an encoder, which tells nothing of its likelihood."""
        return bool(self.config.is_encoder_decoder)


def prepare_image_text(
    module: PreTrainedModel,
    dtype: torch.dtype,
    device: torch.device,
    read: ReadPrompt,
    check_ids: list[int] | None = None,
) -> LoadedModel:
    """Check a vision-language model on a prompt with an image. Raises ModelLoadError."""
    name_linears(module)
    ids = usable_ids(check_ids, module.config)
    try:
        own_cache.check_own_cache(module, ids, device, ImageTextRunner)
        check_images(module, read.ids, ids[: own_cache.NUM_DECODED], read.images, device)
    except Mismatch as error:
        raise ModelLoadError(f"{module.config.model_type}: {error}; it cannot be served") from error
    needs = own_cache.memory_needs(module, device, ImageTextRunner)
    size = parameter_bytes(module)
    fallback = f"{NOT_PAGED}: it reads images"
    return LoadedModel(
        module, module.config, dtype, device, None, *needs, weight_bytes=size, reads_images=True,
        fallbacks=(fallback,),
    )  # fmt: skip


def prepare(
    module: PreTrainedModel,
    dtype: torch.dtype,
    device: torch.device,
    *,
    check_ids: list[int] | None = None,
    in_int8: bool = False,
    cache_dtype: torch.dtype | None = None,
    compiles: bool = False,
) -> LoadedModel:
    """Find the way to serve a model, with weights or cache of eight bits, or compiled, if wanted.

    All ways are checked on a prompt, `check_ids`. Raises ModelLoadError when none computes the
    same, ConfigError when it cannot have eight bits.
    """
    kinds = RowKinds() if in_int8 else None
    size = parameter_bytes(module) // (dtype.itemsize if in_int8 else 1)
    name_linears(module)
    ids = usable_ids(check_ids, module.config)
    reason = "it has an encoder"
    if not module.config.is_encoder_decoder:
        try:
            paged = page(module, ids, device, kinds, cache_dtype, compiles=compiles)
        except CannotPage as error:
            reason = str(error)
        except Mismatch as error:
            raise ModelLoadError(f"{module.config.model_type}: {error}") from error
        else:
            per_token = kv_cache.bytes_per_token(paged.layers, cache_dtype or dtype)
            return LoadedModel(
                module, module.config, dtype, device, paged.layers, per_token,
                cache_dtype=cache_dtype, weight_bytes=size, kinds=kinds,
                kernels=paged.kernels, fallbacks=_missing_kernels(device, paged.kernels),
            )  # fmt: skip
    wishes = {
        "QUANTIZE=int8": in_int8, "KV_CACHE_DTYPE": cache_dtype is not None, "COMPILE=1": compiles
    }  # fmt: skip
    if refused := [name for name, is_wanted in wishes.items() if is_wanted]:
        told = f"{refused[0]} cannot work here, since this model's attention is not paged: {reason}"
        raise ConfigError([told])
    if is_split(module):
        told = f"this model cannot be split, since its attention is not paged: {reason}"
        raise ConfigError([f"{told}; set TENSOR_PARALLEL=1"])
    fallback = f"{NOT_PAGED}: {reason}"
    try:
        own_cache.check_own_cache(module, ids, device)
    except Mismatch as error:
        raise ModelLoadError(f"{module.config.model_type}: {error}; it cannot be served") from error
    needs = own_cache.memory_needs(module, device)
    return LoadedModel(
        module, module.config, dtype, device, None, *needs, weight_bytes=size,
        fallbacks=(fallback,),
    )  # fmt: skip


def _missing_kernels(device: torch.device, kernels: AttentionKernels) -> tuple[str, ...]:
    """Say which kernels a device lacks."""
    if device.type == "cpu" and find_kernels() is None:
        return ("no compiled kernels for this CPU; layers run in PyTorch operations",)
    if device.type == "cuda" and Kernel.REFERENCE in kernels:
        return ("no fused attention kernel passed its check; attention runs in PyTorch operations",)
    return ()


def parameter_bytes(module: torch.nn.Module) -> int:
    """Memory of a model's parameters, those that wait on disk included."""
    return sum(one.numel() * one.element_size() for one in module.parameters())


def recorded_sizes(
    wanted: tuple[int, ...] | None, model: LoadedModel, max_running: int
) -> list[int]:
    """Rows of the decodes that are to be recorded as CUDA graphs; none where that cannot be.

    `wanted` are numbers of sequences, None the usual ones. What several ranks do is recorded only
    on demand: a recording that fails on one of them would leave the others waiting.
    """
    if model.device.type != "cuda" or not model.can_record:
        return []
    if wanted is None:
        return [] if is_split(model.module) else usual_sizes(max_running)
    return sorted({max(MIN_ROWS, min(size, max_running)) for size in wanted})


def record_decodes(
    forward: ForwardPass,
    sizes: list[int],
    max_blocks: int,
    device: torch.device,
    progress: Callable[[str], None],
) -> None:
    """Record decodes of these rows; with several ranks all of them must call it."""
    if sizes:
        with torch.cuda.device(device):
            forward.record(sizes, max_blocks, graph_recorder(), progress)


def make_runner(
    model: LoadedModel,
    config: EngineConfig,
    *,
    end_token_ids: frozenset[int],
    updates: Updates | None = None,
    tell: Callable[[ForwardPlan], None] | None = None,
    overlaps: bool = False,
) -> ModelRunner:
    """Make what executes the engine's batches, with the cache that the engine counts on.

    `tell` hands the plan of each pass to the other ranks. `overlaps`: a step begins before the
    last one is read; a model with its own cache goes without.
    """
    if model.layers is None:
        kind = ImageTextRunner if model.reads_images else OwnCacheRunner
        return kind(model.module, model.device, end_token_ids=end_token_ids, updates=updates)
    forward = make_forward(
        model, config.num_blocks, config.block_size, updates, num_slots=config.num_slots
    )
    return TorchModelRunner(forward, end_token_ids=end_token_ids, tell=tell, overlaps=overlaps)


def make_forward(
    model: LoadedModel,
    num_blocks: int,
    block_size: int,
    updates: Updates | None = None,
    *,
    num_slots: int = 0,
) -> ForwardPass:
    """Make the cache of a paged model, with slots on the host, and what runs it."""
    assert model.layers is not None
    cache = KVCache(
        model.layers,
        num_blocks=num_blocks,
        block_size=block_size,
        dtype=model.cache_dtype or model.dtype,
        device=model.device,
    )
    return ForwardPass(
        model.module, cache, model.device, updates=updates, kinds=model.kinds,
        kernels=model.kernels, is_split=is_split(model.module),
        host=HostCache(cache, num_slots, model.device) if num_slots else None,
    )  # fmt: skip
