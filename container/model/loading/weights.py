"""Loads weights: from a model's folder to a checked module on its devices.

All ranks load in the same way, step by step.
"""

import logging
import os
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.distributed.configuration_utils import DistributedConfig

from container.errors import ConfigError, ModelLoadError, one_line
from container.images.reader import ImageReader
from container.ipc.backend_server import Progress
from container.model.fallbacks import Fallbacks
from container.model.formats.checkpoint import (
    has_few_bits,
    is_gguf,
    method_name,
)
from container.model.kernels.cpu import Kernels
from container.model.loaded_model import LoadedModel
from container.model.loading.checkpoint_loader import CheckpointLoader
from container.model.loading.config import choose_cache_dtype, choose_dtype, dtype_name
from container.model.loading.prepare import prepare
from container.model.loading.quantization import (
    OWN_METHODS,
    missing_quantizer,
    quantizer_options,
)
from container.model.parallel.placement import Machine, Placement, num_gpus, place, weight_bytes
from container.settings.engine import PlacementSettings
from container.settings.model import ModelSettings
from container.settings.process_env import RANKS_FOLDER

log = logging.getLogger(__name__)


def plan_load(
    settings: ModelSettings,
    placement_settings: PlacementSettings,
    config: PretrainedConfig,
    path: Path,
    replica: int,
    fallbacks: Fallbacks,
) -> tuple[Placement, torch.dtype]:
    """Choose the devices and the dtype of the weights. Raises ConfigError."""
    machine = Machine.detect()
    uses_gpu = num_gpus(placement_settings.num_gpus, len(machine.gpu_bytes)) > 0
    dtype = choose_dtype(settings.dtype, torch.device("cuda" if uses_gpu else "cpu"))
    size = weight_bytes(path, config, dtype, settings.quantize)
    placement = place(
        placement_settings, config, size, machine, fallbacks, quantize=settings.quantize,
        replica=replica,
    )  # fmt: skip
    if (placement.is_tensor_parallel or placement.uses_device_map) and settings.lora_adapters:
        raise ConfigError(
            [
                "LORA_ADAPTERS is not supported for a model on several devices; set "
                "SM_NUM_GPUS=1, or DATA_PARALLEL to the number of GPUs"
            ]
        )
    if placement.uses_device_map and settings.quantize in OWN_METHODS:
        refused = f"QUANTIZE={settings.quantize} is not supported for a model on several devices"
        raise ConfigError([f"{refused}; unset it"])
    return placement, dtype


def load_weights(
    settings: ModelSettings,
    path: Path,
    config: PretrainedConfig,
    dtype: torch.dtype,
    placement: Placement,
    reader: ImageReader | None = None,
    check_ids: list[int] | None = None,
    cpu_kernels: Kernels | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a model, or this rank's shard, and check it on a prompt of `check_ids`.

    Raises ModelLoadError, ConfigError.
    """
    reason = _why_dequantized(settings, path, config, placement.device)
    dequantizes = reason is not None
    if dequantizes or (placement.device.type == "cpu" and has_few_bits(path, config)):
        _refuse_for_few_bits(settings, placement)
    options = {} if dequantizes else quantizer_options(settings.quantize, config, placement.device)
    if placement.uses_device_map:
        options |= {
            "device_map": "auto",
            "max_memory": placement.max_memory,
            "offload_folder": tempfile.mkdtemp(prefix="weights-", dir=os.environ.get(RANKS_FOLDER)),
        }
    if placement.is_tensor_parallel:
        options["distributed_config"] = DistributedConfig(tp_size=len(placement.devices))
    if settings.compile and (placement.is_tensor_parallel or placement.uses_device_map):
        raise ConfigError([f"COMPILE=1 needs a model on one device; this one is on {placement}"])
    model = load_model(
        path,
        config,
        dtype,
        placement.device,
        trust_remote_code=settings.trust_remote_code,
        quantize=settings.quantize if settings.quantize in OWN_METHODS else None,
        cache_dtype=choose_cache_dtype(settings.kv_cache_dtype),
        compiles=settings.compile,
        options=options,
        reader=reader,
        check_ids=check_ids,
        cpu_kernels=cpu_kernels,
        dequantizes=dequantizes,
        takes_adapters=settings.lora_adapters is not None,
        progress=progress,
    )
    if reason is not None:
        fallbacks = Fallbacks()
        fallbacks.extend(model.fallbacks)
        fallbacks.add(
            "weights of few bits",
            f"{reason}; they are computed once and served in {dtype_name(dtype)}, with up to four "
            "times the memory of the file",
            "install the quantizer's package, or take another checkpoint",
        )
        model = replace(model, fallbacks=fallbacks.lines)
    if placement.uses_device_map:
        # If everything fits one device, transformers sets no map.
        placed = getattr(model.module, "hf_device_map", {"": placement.device})
        where = Counter(map(str, placed.values()))
        log.info("device map: %s", ", ".join(f"{n} on {name}" for name, n in where.items()))
    return model


def load_model(
    path: Path,
    config: PretrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    trust_remote_code: bool = False,
    quantize: str | None = None,
    cache_dtype: torch.dtype | None = None,
    compiles: bool = False,
    options: dict[str, Any] | None = None,
    reader: ImageReader | None = None,
    check_ids: list[int] | None = None,
    cpu_kernels: Kernels | None = None,
    dequantizes: bool = False,
    takes_adapters: bool = False,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a language model and choose how to serve it. Raises ModelLoadError or ConfigError.

    With a `reader`, it is a vision-language model. `options` go to `from_pretrained`. A checkpoint
    of few bits keeps these on a CPU, and with `dequantizes` becomes one of `dtype`.
    """
    if reader is not None and compiles:
        raise ConfigError(["COMPILE is not for vision-language models; unset it"])
    loader = CheckpointLoader(
        path, config, dtype, device, reads_images=reader is not None,
        trust_remote_code=trust_remote_code, options=options or {}, dequantizes=dequantizes,
    )  # fmt: skip

    def load() -> PreTrainedModel:
        module = loader.load()
        if progress is not None:
            progress("checking the layers against the model's own")
        return module

    try:
        return prepare(
            load(), dtype, device, check_ids=check_ids, cpu_kernels=cpu_kernels,
            quantize=quantize, cache_dtype=cache_dtype, compiles=compiles, reload=load,
            read=None if reader is None else reader.read_probe(), takes_adapters=takes_adapters,
        )  # fmt: skip
    except (ModelLoadError, ConfigError):
        raise
    except Exception as error:  # sizes in config.json that contradict each other
        raise ModelLoadError(f"{path}: the model cannot be run: {one_line(error)}") from error


def _why_dequantized(
    settings: ModelSettings, path: Path, config: PretrainedConfig, device: torch.device
) -> str | None:
    """Return why nothing on this GPU computes with a checkpoint's few bits; None if they serve."""
    method = method_name(path, config)
    if device.type == "cpu" or not has_few_bits(path, config):
        return None
    if is_gguf(path):
        return "there are no kernels for GGUF on a GPU"
    if settings.quantize not in (None, method):
        return None
    reason = missing_quantizer(config, device)
    return None if reason is None else f"{method} checkpoint: {reason}"


def _refuse_for_few_bits(settings: ModelSettings, placement: Placement) -> None:
    """Raise ConfigError for settings that such a checkpoint cannot have."""
    requested = {
        f"QUANTIZE={settings.quantize}": settings.quantize in OWN_METHODS,
        "Tensor parallelism": placement.is_tensor_parallel,
        "MAX_MEMORY": placement.uses_device_map,
        "COMPILE=1": settings.compile,
    }
    if refused := [name for name, is_requested in requested.items() if is_requested]:
        raise ConfigError(
            [
                f"{refused[0]} cannot work here: the checkpoint is quantized already; unset it "
                "(of several GPUs, set SM_NUM_GPUS=1 or DATA_PARALLEL)"
            ]
        )
