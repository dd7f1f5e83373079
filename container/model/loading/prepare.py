"""Prepares a loaded model for serving, and checks it before it serves.

Paged attention if the conversion succeeds; else the transformers cache, one sequence after another.
"""

import torch
from transformers import PreTrainedModel

from container.errors import ConfigError, ModelLoadError
from container.images.reader import ReadPrompt
from container.model.attention.varlen import REFERENCE_ONLY, AttentionKernels, Kernel
from container.model.checks.image_prompt import image_prompt
from container.model.checks.layer_probe import NotPageable
from container.model.checks.schedule import CheckPrompt
from container.model.execution import hf_cache_runner
from container.model.execution.hf_cache_runner import HFCacheRunner
from container.model.execution.vision_runner import VisionRunner, check_images
from container.model.hf_config import text_config
from container.model.kernels.cpu import Kernels
from container.model.kv_cache import cache as kv_cache
from container.model.layers.int8_linear import BatchPhase
from container.model.layers.quantized_weight import QuantizedWeight
from container.model.loaded_model import LoadedModel, parameter_bytes, stored_bytes
from container.model.loading.memory_plan import context_len
from container.model.loading.paged_conversion import convert_to_paged
from container.model.optimize.packing import name_linears
from container.model.paged_decoder.conversion import convert_decoder
from container.model.parallel.tensor_parallel import is_tensor_parallel
from container.model.reference_check import Mismatch, usable_ids
from container.model.states.cache import bytes_per_sequence
from container.model.vision.language_model import LanguageModel

GROUPS_COMPUTED = "no kernels for its weights of four or eight bits; each step computes them anew"
NOT_PAGED = "requests run one after another, since this model's attention is not paged"


def prepare(
    module: PreTrainedModel,
    dtype: torch.dtype,
    device: torch.device,
    *,
    check_ids: list[int] | None = None,
    read: ReadPrompt | None = None,
    cpu_kernels: Kernels | None = None,
    quantize: str | None = None,
    cache_dtype: torch.dtype | None = None,
    compiles: bool = False,
    takes_adapters: bool = False,
) -> LoadedModel:
    """Choose how to serve a model, and check it on a prompt of `check_ids`.

    A vision-language model is also checked on `read`, a prompt with an image. `quantize` (`int8` or
    `int4`) is the weights' form, `cache_dtype` the cache's, `compiles` uses torch.compile,
    `takes_adapters` expects LoRA adapters; `cpu_kernels` are for a model on a CPU. Raises
    ModelLoadError if no form matches the model's own results, ConfigError if one of these options
    cannot work.
    """
    name_linears(module)
    ids = usable_ids(check_ids, module.config)
    options = {
        f"QUANTIZE={quantize}": quantize is not None,
        "KV_CACHE_DTYPE": cache_dtype is not None,
        "COMPILE=1": compiles,
    }
    requested = [name for name, is_requested in options.items() if is_requested]
    try:
        return _prepare_paged(
            module, ids, dtype, device, read=read, cpu_kernels=cpu_kernels, quantize=quantize,
            cache_dtype=cache_dtype, compiles=compiles, takes_adapters=takes_adapters,
        )  # fmt: skip
    except NotPageable as error:
        reason = str(error)
    except Mismatch as error:
        remedy = f"; try it without {' and '.join(requested)}" if requested else ""
        raise ModelLoadError(f"{module.config.model_type}: {error}{remedy}") from error
    if requested:
        message = (
            f"{requested[0]} cannot work here, since this model's attention is not paged: {reason}"
        )
        raise ConfigError([message])
    if is_tensor_parallel(module):
        message = f"this model cannot be split, since its attention is not paged: {reason}"
        raise ConfigError([f"{message}; set TENSOR_PARALLEL=1"])
    return _prepare_own(module, ids, dtype, device, reason, read=read, cpu_kernels=cpu_kernels)


def _prepare_paged(
    module: PreTrainedModel,
    ids: list[int],
    dtype: torch.dtype,
    device: torch.device,
    *,
    read: ReadPrompt | None,
    cpu_kernels: Kernels | None,
    quantize: str | None,
    cache_dtype: torch.dtype | None,
    compiles: bool,
    takes_adapters: bool,
) -> LoadedModel:
    """Serve a model with paged attention. Raises NotPageable, Mismatch or ConfigError."""
    if module.config.is_encoder_decoder:
        if quantize is not None or cache_dtype is not None or compiles:
            raise NotPageable("it has an encoder")
        if takes_adapters:
            raise NotPageable("adapters of a model with an encoder (LORA_ADAPTERS) are not paged")
        return _prepare_decoder(module, ids, dtype, device, cpu_kernels)
    phase = BatchPhase() if quantize == "int8" else None
    has_groups, size = quantize == "int4" or _has_groups(module), parameter_bytes(module)
    language_model, prompt = None, CheckPrompt(ids)
    try:
        if read is not None:
            language_model = LanguageModel(module)
            prompt = image_prompt(language_model, read, ids)
        paged = convert_to_paged(
            module, prompt, device, phase, cache_dtype, language_model=language_model,
            int4_weights=quantize == "int4", cpu_kernels=cpu_kernels, compiles=compiles,
        )  # fmt: skip
    except NotPageable:
        if language_model is not None:
            language_model.detach()
        raise
    if quantize is not None or has_groups:  # experts, which are no linear layers, stay as they are
        size = stored_bytes(module)
    fallbacks = _missing_kernels(device, cpu_kernels, paged.kernels)
    fallbacks += _missing_gemms(cpu_kernels, has_groups=has_groups)
    per_token = kv_cache.bytes_per_token(paged.layers, cache_dtype or dtype)
    return LoadedModel(
        module, module.config, dtype, device, paged.layers, per_token,
        0 if paged.mixers is None else bytes_per_sequence(paged.mixers.shapes),
        mixers=paged.mixers, cache_dtype=cache_dtype, weight_bytes=size, phase=phase,
        kernels=paged.kernels, fallbacks=fallbacks, cpu_kernels=cpu_kernels,
        is_multimodal=read is not None, language_model=language_model,
        image_tokens=max((stop - start for start, stop in prompt.whole_spans), default=0),
    )  # fmt: skip


def _prepare_decoder(
    module: PreTrainedModel,
    ids: list[int],
    dtype: torch.dtype,
    device: torch.device,
    cpu_kernels: Kernels | None,
) -> LoadedModel:
    """Serve an encoder-decoder with a paged decoder. Raises NotPageable or Mismatch."""
    size = parameter_bytes(module)
    context = context_len(text_config(module.config))
    decoder = convert_decoder(module, ids, device, context, cpu_kernels)
    kernels = REFERENCE_ONLY
    return LoadedModel(
        module, module.config, dtype, device, decoder.shapes,
        kv_cache.bytes_per_token(decoder.shapes, dtype), weight_bytes=size, kernels=kernels,
        fallbacks=_missing_kernels(device, cpu_kernels, kernels), cpu_kernels=cpu_kernels,
        decoder=decoder,
    )  # fmt: skip


def _prepare_own(
    module: PreTrainedModel,
    ids: list[int],
    dtype: torch.dtype,
    device: torch.device,
    reason: str,
    *,
    read: ReadPrompt | None,
    cpu_kernels: Kernels | None,
) -> LoadedModel:
    """Serve a model with its own cache; `reason` is why not paged. Raises ModelLoadError."""
    runner_class = HFCacheRunner if read is None else VisionRunner
    try:
        hf_cache_runner.check_hf_cache(module, ids, device, runner_class)
        if read is not None:
            check_images(module, read.ids, ids[: hf_cache_runner.NUM_DECODED], read.images, device)
    except Mismatch as error:
        raise ModelLoadError(f"{module.config.model_type}: {error}; it cannot be served") from error
    needs = hf_cache_runner.memory_needs(module, device, runner_class)
    fallbacks = (f"{NOT_PAGED}: {reason}",)
    return LoadedModel(
        module, module.config, dtype, device, None, *needs, weight_bytes=parameter_bytes(module),
        is_multimodal=read is not None, cpu_kernels=cpu_kernels,
        fallbacks=(*fallbacks, GROUPS_COMPUTED) if _has_groups(module) else fallbacks,
    )  # fmt: skip


def _has_groups(module: PreTrainedModel) -> bool:
    return any(isinstance(parameter, QuantizedWeight) for parameter in module.parameters())


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
