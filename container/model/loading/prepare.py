"""Prepares a loaded model for serving, and checks it before it serves.

Paged attention if the conversion succeeds; else the transformers cache, one sequence after another.
"""

import torch
from transformers import PreTrainedModel

from container.errors import ConfigError, ModelLoadError
from container.images.reader import ReadPrompt
from container.model.attention.varlen import AttentionKernels, Kernel
from container.model.checks.layer_probe import NotPageable
from container.model.execution import hf_cache_runner
from container.model.execution.vision_runner import VisionRunner, check_images
from container.model.kernels.cpu import Kernels
from container.model.kv_cache import cache as kv_cache
from container.model.layers.int8_linear import BatchPhase
from container.model.layers.quantized_weight import QuantizedWeight
from container.model.loaded_model import LoadedModel, parameter_bytes, stored_bytes
from container.model.loading.paged_conversion import convert_to_paged
from container.model.optimize.packing import name_linears
from container.model.parallel.tensor_parallel import is_tensor_parallel
from container.model.reference_check import Mismatch, usable_ids
from container.model.states.cache import bytes_per_sequence

GROUPS_COMPUTED = "no kernels for its weights of four or eight bits; each step computes them anew"
NOT_PAGED = "requests run one after another, since this model's attention is not paged"


def prepare_vision(
    module: PreTrainedModel,
    dtype: torch.dtype,
    device: torch.device,
    read: ReadPrompt,
    check_ids: list[int] | None = None,
    cpu_kernels: Kernels | None = None,
) -> LoadedModel:
    """Check a vision-language model on a prompt with an image. Raises ModelLoadError."""
    name_linears(module)
    ids = usable_ids(check_ids, module.config)
    try:
        hf_cache_runner.check_hf_cache(module, ids, device, VisionRunner)
        check_images(module, read.ids, ids[: hf_cache_runner.NUM_DECODED], read.images, device)
    except Mismatch as error:
        raise ModelLoadError(f"{module.config.model_type}: {error}; it cannot be served") from error
    needs = hf_cache_runner.memory_needs(module, device, VisionRunner)
    size = parameter_bytes(module)
    fallback = f"{NOT_PAGED}: it reads images"
    return LoadedModel(
        module, module.config, dtype, device, None, *needs, weight_bytes=size, is_multimodal=True,
        fallbacks=(fallback,), cpu_kernels=cpu_kernels,
    )  # fmt: skip


def prepare(
    module: PreTrainedModel,
    dtype: torch.dtype,
    device: torch.device,
    *,
    check_ids: list[int] | None = None,
    cpu_kernels: Kernels | None = None,
    quantize: str | None = None,
    cache_dtype: torch.dtype | None = None,
    compiles: bool = False,
) -> LoadedModel:
    """Choose how to serve a model, and check it on a prompt of `check_ids`.

    `quantize` (`int8` or `int4`) is the weights' form, `cache_dtype` the cache's, `compiles` uses
    torch.compile; `cpu_kernels` are for a model on a CPU. Raises ModelLoadError if no form matches
    the model's own results, ConfigError if one of these options cannot work.
    """
    phase = BatchPhase() if quantize == "int8" else None
    has_groups = quantize == "int4" or any(
        isinstance(parameter, QuantizedWeight) for parameter in module.parameters()
    )
    size = parameter_bytes(module)
    name_linears(module)
    ids = usable_ids(check_ids, module.config)
    reason = "it has an encoder"
    if not module.config.is_encoder_decoder:
        try:
            paged = convert_to_paged(
                module, ids, device, phase, cache_dtype, int4_weights=quantize == "int4",
                cpu_kernels=cpu_kernels, compiles=compiles,
            )  # fmt: skip
        except NotPageable as error:
            reason = str(error)
        except Mismatch as error:
            raise ModelLoadError(f"{module.config.model_type}: {error}") from error
        else:
            if (
                quantize is not None or has_groups
            ):  # experts, which are no linear layers, stay as they are
                size = stored_bytes(module)
            fallbacks = _missing_kernels(device, cpu_kernels, paged.kernels)
            fallbacks += _missing_gemms(cpu_kernels, has_groups=has_groups)
            per_token = kv_cache.bytes_per_token(paged.layers, cache_dtype or dtype)
            return LoadedModel(
                module, module.config, dtype, device, paged.layers, per_token,
                0 if paged.mixers is None else bytes_per_sequence(paged.mixers.shapes),
                mixers=paged.mixers, cache_dtype=cache_dtype, weight_bytes=size, phase=phase,
                kernels=paged.kernels, fallbacks=fallbacks, cpu_kernels=cpu_kernels,
            )  # fmt: skip
    requested = {
        f"QUANTIZE={quantize}": quantize is not None,
        "KV_CACHE_DTYPE": cache_dtype is not None,
        "COMPILE=1": compiles,
    }
    if refused := [name for name, is_requested in requested.items() if is_requested]:
        message = (
            f"{refused[0]} cannot work here, since this model's attention is not paged: {reason}"
        )
        raise ConfigError([message])
    if is_tensor_parallel(module):
        message = f"this model cannot be split, since its attention is not paged: {reason}"
        raise ConfigError([f"{message}; set TENSOR_PARALLEL=1"])
    fallback = f"{NOT_PAGED}: {reason}"
    try:
        hf_cache_runner.check_hf_cache(module, ids, device)
    except Mismatch as error:
        raise ModelLoadError(f"{module.config.model_type}: {error}; it cannot be served") from error
    needs = hf_cache_runner.memory_needs(module, device)
    fallbacks = (fallback, GROUPS_COMPUTED) if has_groups else (fallback,)
    return LoadedModel(
        module, module.config, dtype, device, None, *needs, weight_bytes=size,
        fallbacks=fallbacks, cpu_kernels=cpu_kernels,
    )  # fmt: skip


def _missing_gemms(cpu_kernels: Kernels | None, *, has_groups: bool) -> tuple[str, ...]:
    """Describe that weights in groups of inputs have no kernels."""
    if not has_groups or (cpu_kernels is not None and cpu_kernels.supports_gemm):
        return ()
    return (GROUPS_COMPUTED,)


def _missing_kernels(
    device: torch.device, cpu_kernels: Kernels | None, kernels: AttentionKernels
) -> tuple[str, ...]:
    """Describe the kernels that a device lacks."""
    if device.type == "cpu" and cpu_kernels is None:
        return ("no compiled kernels for this CPU; layers run in PyTorch operations",)
    if device.type == "cuda" and Kernel.REFERENCE in kernels:
        return ("no fused attention kernel passed its check; attention runs in PyTorch operations",)
    return ()
