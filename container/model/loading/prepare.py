"""Prepares a loaded model for serving, and checks it before it serves.

Paged attention if the conversion succeeds; else the transformers cache, one sequence after another.
"""

import logging
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from container.errors import ConfigError, ModelLoadError
from container.images.reader import ReadPrompt
from container.model.attention.varlen import REFERENCE_ONLY
from container.model.checks.image_prompt import image_prompt
from container.model.checks.layer_probe import NotPageable
from container.model.checks.schedule import CheckPrompt
from container.model.execution import hf_cache_runner
from container.model.execution.hf_cache_runner import HFCacheRunner
from container.model.execution.vision_runner import VisionRunner, check_images
from container.model.fallbacks import TRY_ANOTHER_DTYPE, Fallbacks
from container.model.hf_config import text_config
from container.model.kernels.cpu import DTYPES, Kernels
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

log = logging.getLogger(__name__)

# Computes anew a model that a conversion has changed.
Reload = Callable[[], PreTrainedModel]
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
    reload: Reload | None = None,
) -> LoadedModel:
    """Choose how to serve a model, and check it on a prompt of `check_ids`.

    A vision-language model is also checked on `read`, a prompt with an image. `quantize` (`int8` or
    `int4`) is the weights' form, `cache_dtype` the cache's, `compiles` uses torch.compile,
    `takes_adapters` expects LoRA adapters; `cpu_kernels` are for a model on a CPU. `reload` loads
    the model again, for the case that its fast form is refused after it was changed; the caller
    keeps no reference to the first one. Raises ModelLoadError if no form matches the model's own
    results, ConfigError if one of these options cannot work.
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
        reason, is_changed = str(error), False
    except Mismatch as error:
        if requested or reload is None or is_tensor_parallel(module):
            remedy = f"; try it without {' and '.join(requested)}" if requested else ""
            raise ModelLoadError(f"{module.config.model_type}: {error}{remedy}") from error
        reason, is_changed = f"{error}; {TRY_ANOTHER_DTYPE}", True
    if is_changed and reload is not None:
        del module  # it is not held twice
        module = reload()
        name_linears(module)
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
    phase, fallbacks = BatchPhase() if quantize == "int8" else None, Fallbacks()
    has_groups, size = quantize == "int4" or _has_groups(module), parameter_bytes(module)
    language_model, prompt = None, CheckPrompt(ids)
    try:
        if read is not None:
            language_model = LanguageModel(module)
            prompt = image_prompt(language_model, read, ids)
        paged = convert_to_paged(
            module, prompt, device, fallbacks, phase, cache_dtype, language_model=language_model,
            int4_weights=quantize == "int4", cpu_kernels=cpu_kernels, compiles=compiles,
        )  # fmt: skip
    except NotPageable:
        if language_model is not None:
            language_model.detach()
        raise
    if quantize is not None or has_groups:  # experts, which are no linear layers, stay as they are
        size = stored_bytes(module)
    if device.type == "cpu" and cpu_kernels is not None:
        _add_missing_kernels(fallbacks, cpu_kernels, dtype, cache_dtype)
    if has_groups and not (cpu_kernels is not None and cpu_kernels.supports_gemm):
        _add_missing_gemms(fallbacks)
    per_token = kv_cache.bytes_per_token(paged.layers, cache_dtype or dtype)
    return LoadedModel(
        module, module.config, dtype, device, paged.layers, per_token,
        0 if paged.mixers is None else bytes_per_sequence(paged.mixers.shapes),
        mixers=paged.mixers, cache_dtype=cache_dtype, weight_bytes=size, phase=phase,
        kernels=paged.kernels, fallbacks=fallbacks.lines, cpu_kernels=cpu_kernels,
        is_multimodal=read is not None, language_model=language_model, times=paged.times,
        not_proved=(*paged.not_proved, *fallbacks.not_proved),
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
    size, fallbacks = parameter_bytes(module), Fallbacks()
    context = context_len(text_config(module.config))
    decoder = convert_decoder(module, ids, device, context, fallbacks, cpu_kernels)
    if device.type != "cpu":
        log.info("attention runs in PyTorch operations: encoder-decoders have no fused kernels")
    return LoadedModel(
        module, module.config, dtype, device, decoder.shapes,
        kv_cache.bytes_per_token(decoder.shapes, dtype), weight_bytes=size, kernels=REFERENCE_ONLY,
        fallbacks=fallbacks.lines, cpu_kernels=cpu_kernels, decoder=decoder,
        not_proved=fallbacks.not_proved,
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
    fallbacks = Fallbacks()
    fallbacks.add("attention", f"{NOT_PAGED}: {reason}", "docs/models.md lists those that are")
    if _has_groups(module):
        _add_missing_gemms(fallbacks)
    try:
        hf_cache_runner.check_hf_cache(module, ids, device, fallbacks, runner_class)
        if read is not None:
            decoded = ids[: hf_cache_runner.NUM_DECODED]
            check_images(module, read.ids, decoded, read.images, device, fallbacks)
    except Mismatch as error:
        raise ModelLoadError(f"{module.config.model_type}: {error}; it cannot be served") from error
    needs = hf_cache_runner.memory_needs(module, device, runner_class)
    return LoadedModel(
        module, module.config, dtype, device, None, *needs, weight_bytes=parameter_bytes(module),
        is_multimodal=read is not None, cpu_kernels=cpu_kernels, fallbacks=fallbacks.lines,
        not_proved=fallbacks.not_proved,
    )  # fmt: skip


def _has_groups(module: PreTrainedModel) -> bool:
    return any(isinstance(parameter, QuantizedWeight) for parameter in module.parameters())


def _add_missing_gemms(fallbacks: Fallbacks) -> None:
    fallbacks.add(
        "weights of four or eight bits",
        "no kernels multiply with them, so each step computes them anew",
        "take an instance whose CPU has AVX2 or AVX-512, and a model whose attention is paged",
    )


def _add_missing_kernels(
    fallbacks: Fallbacks, kernels: Kernels, dtype: torch.dtype, cache_dtype: torch.dtype | None
) -> None:
    """Add the formats that the compiled kernels lack, though they serve others on this CPU."""
    if dtype not in DTYPES:
        fallbacks.add(
            "CPU kernels", f"they do not compute in {dtype}, so PyTorch's operations serve",
            "set DTYPE=float32 or bfloat16",
        )  # fmt: skip
    elif cache_dtype is not None and kernels.supports_gemm:
        fallbacks.add(
            "CPU kernels", "they read no cache of eight bits, so PyTorch's operations attend",
            "unset KV_CACHE_DTYPE unless memory is short",
        )  # fmt: skip
