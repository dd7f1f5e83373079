"""Placement: on which devices a model's weights go, and how they share the work.

One device: the whole model on one GPU, or on the CPU.
Split: every layer over several ranks, by transformers' plan
(container.model.parallel.tensor_parallel). Spread: layer after layer over GPUs, CPU and disk, by
accelerate, for what cannot be split or is too large; one device works at a time.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from transformers import PretrainedConfig

from container.errors import ConfigError
from container.model.parallel.tensor_parallel import why_not_sharded
from container.settings.casts import parse_max_memory
from container.settings.engine import PlacementSettings

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
# What of a device's memory spread weights may take; the rest is for the KV cache and the work.
WEIGHTS_SHARE = 0.7
# What is made smaller while it is loaded; int8 is made from weights that are there.
BYTES_OF_A_WEIGHT = {
    "bitsandbytes": 1.0, "bitsandbytes-nf4": 0.5, "bitsandbytes-fp4": 0.5, "eetq": 1.0, "fp8": 1.0
}  # fmt: skip
WEIGHT_FILES = ("*.safetensors", "*.bin")


@dataclass(frozen=True, slots=True)
class Machine:
    """Memory in bytes: of each visible GPU, and what is free of the CPU's."""

    gpu_bytes: tuple[int, ...]
    cpu_bytes: int

    @classmethod
    def look(cls) -> "Machine":
        """Ask the driver and the kernel."""
        count = torch.cuda.device_count()
        gpus = (torch.cuda.get_device_properties(gpu).total_memory for gpu in range(count))
        return cls(tuple(gpus), psutil.virtual_memory().available)


@dataclass(frozen=True, slots=True)
class Placement:
    """`devices` has one for each rank. With `max_memory`, in accelerate's form, it is spread."""

    devices: tuple[torch.device, ...]
    max_memory: dict[int | str, int] | None = None

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.devices[0]

    def __str__(self) -> str:
        """Say it in words."""
        if self.max_memory is not None:
            return "several devices, layer after layer"
        if self.is_tensor_parallel:
            return f"{self.device.type}, split over {len(self.devices)} ranks"
        return self.device.type

    @property
    def uses_device_map(self) -> bool:
        """Whether its layers lie on different devices."""
        return self.max_memory is not None

    @property
    def is_tensor_parallel(self) -> bool:
        """Whether several ranks have a share of each layer."""
        return len(self.devices) > 1


def place(
    settings: PlacementSettings,
    config: PretrainedConfig,
    weight_bytes: int,
    machine: Machine,
    *,
    quantize: str | None = None,
    replica: int = 0,
) -> Placement:
    """Decide for the copy of this number. Raises ConfigError when the wishes cannot be kept."""
    devices = _devices(settings, machine, replica)
    if settings.max_memory is not None:
        return _as_told(parse_max_memory(settings.max_memory), machine)
    ranks = _wanted_ranks(settings.tensor_parallel, devices)
    reason = "TENSOR_PARALLEL=1 says so"
    if ranks > 1:
        obstacle = why_not_sharded(config, ranks)
        if quantize not in (None, "int8"):
            obstacle = obstacle or f"QUANTIZE={quantize} is for whole layers"
        if obstacle is None:
            return Placement(devices if devices[0].type == "cuda" else devices * ranks)
        if settings.tensor_parallel is not None:
            raise ConfigError([f"TENSOR_PARALLEL={ranks} cannot work here: {obstacle}"])
        reason = obstacle
    gpus = [device.index for device in devices if device.type == "cuda"]
    if len(gpus) > 1:
        log.info("the layers are spread over %d GPUs, one of which works at a time, as %s",
                 len(gpus), reason)  # fmt: skip
    elif not gpus or weight_bytes <= settings.cuda_memory_fraction * machine.gpu_bytes[gpus[0]]:
        return Placement(devices)
    else:
        log.warning("the weights, %.1f GiB, are larger than the GPU's memory: some layers go to "
                    "the CPU or the disk, which is slow", weight_bytes / 2**30)  # fmt: skip
    share = WEIGHTS_SHARE * settings.cuda_memory_fraction
    limits: dict[int | str, int] = {gpu: int(share * machine.gpu_bytes[gpu]) for gpu in gpus}
    return Placement(devices[:1], limits | {"cpu": int(WEIGHTS_SHARE * machine.cpu_bytes)})


def _as_told(limits: dict[int | str, int], machine: Machine) -> Placement:
    """Spread over the devices that MAX_MEMORY names; inputs go to the first GPU of them."""
    gpus = [name for name in limits if isinstance(name, int)]
    if missing := [gpu for gpu in gpus if gpu >= len(machine.gpu_bytes)]:
        raise ConfigError([f"MAX_MEMORY names GPU {missing[0]}, which is not there"])
    return Placement((torch.device("cuda", min(gpus)) if gpus else CPU,), limits)


def num_gpus(requested: int | None, available: int) -> int:
    """How many GPUs are used together. Raises ConfigError for more than there are."""
    requested = available if requested is None else requested
    if requested > available:
        raise ConfigError([f"SM_NUM_GPUS={requested}, but this machine has {available} GPUs"])
    return requested


def weight_bytes(
    folder: Path, config: PretrainedConfig, dtype: torch.dtype, quantize: str | None
) -> int:
    """Memory that a checkpoint's weights will take in this format."""
    paths = next((matching for kind in WEIGHT_FILES if (matching := list(folder.glob(kind)))), [])
    stored = getattr(config, "dtype", None)
    itemsize = BYTES_OF_A_WEIGHT.get(quantize or "", dtype.itemsize)
    ratio = itemsize / stored.itemsize if isinstance(stored, torch.dtype) else 1.0
    quantized = getattr(config, "quantization_config", None) is not None
    return int(sum(path.stat().st_size for path in paths) * (1.0 if quantized else ratio))


def _devices(
    settings: PlacementSettings, machine: Machine, replica: int
) -> tuple[torch.device, ...]:
    """The GPUs of this copy, or the CPU."""
    count = num_gpus(settings.num_gpus, len(machine.gpu_bytes))
    if count % settings.data_parallel:
        raise ConfigError(
            [f"DATA_PARALLEL={settings.data_parallel}: {count} GPUs cannot be shared out equally"]
        )
    share = count // settings.data_parallel
    if share == 0:
        return (CPU,)
    return tuple(torch.device("cuda", replica * share + i) for i in range(share))


def _wanted_ranks(requested: int | None, devices: tuple[torch.device, ...]) -> int:
    if requested is None:
        return len(devices)
    if devices[0].type == "cuda" and requested not in (1, len(devices)):
        raise ConfigError(
            [f"TENSOR_PARALLEL={requested}: each copy has {len(devices)} GPUs; set it to that or 1"]
        )
    return requested
