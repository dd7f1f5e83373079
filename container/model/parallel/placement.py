"""Placement: assigns a model's weights to devices.

One device: the whole model on one GPU, or on the CPU.
Tensor parallel: every layer sharded over several ranks, by transformers' plan
(container.model.parallel.tensor_parallel). Device map: whole layers on GPUs, CPU and disk, by
accelerate, for models that cannot be sharded or are too large; one device works at a time.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from transformers import PretrainedConfig

from container.errors import ConfigError
from container.model.fallbacks import Fallbacks
from container.model.parallel.tensor_parallel import why_not_sharded
from container.settings.casts import parse_max_memory
from container.settings.engine import PlacementSettings

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
# The fraction of a device's memory for weights under a device map; the rest is for the KV cache
# and activations.
WEIGHTS_FRACTION = 0.7
# Methods that quantize while loading; int8 and int4 convert weights that are already in memory.
BYTES_OF_A_WEIGHT = {
    "bitsandbytes": 1.0, "bitsandbytes-nf4": 0.5, "bitsandbytes-fp4": 0.5, "eetq": 1.0, "fp8": 1.0
}  # fmt: skip
WEIGHT_FILES = ("*.safetensors", "*.bin")


@dataclass(frozen=True, slots=True)
class Machine:
    """Memory in bytes: of each visible GPU, and the CPU's available memory.

    `has_nccl`: torch has the library that GPUs exchange tensors with.
    """

    gpu_bytes: tuple[int, ...]
    cpu_bytes: int
    has_nccl: bool = True

    @classmethod
    def detect(cls) -> "Machine":
        """Read the memory sizes from the driver and the kernel."""
        count = torch.cuda.device_count()
        gpus = (torch.cuda.get_device_properties(gpu).total_memory for gpu in range(count))
        return cls(tuple(gpus), psutil.virtual_memory().available, dist.is_nccl_available())


@dataclass(frozen=True, slots=True)
class Placement:
    """One device per rank; with `max_memory`, in accelerate's form, a device map instead."""

    devices: tuple[torch.device, ...]
    max_memory: dict[int | str, int] | None = None

    @property
    def device(self) -> torch.device:
        """The device of the inputs."""
        return self.devices[0]

    def __str__(self) -> str:
        """Describe the placement for the log."""
        if self.max_memory is not None:
            return "several devices (device map)"
        if self.is_tensor_parallel:
            return f"{self.device.type}, split over {len(self.devices)} ranks"
        return self.device.type

    @property
    def uses_device_map(self) -> bool:
        """Whether accelerate places whole layers on different devices."""
        return self.max_memory is not None

    @property
    def is_tensor_parallel(self) -> bool:
        """Whether each layer is sharded over several ranks."""
        return len(self.devices) > 1


def place(
    settings: PlacementSettings,
    config: PretrainedConfig,
    weight_bytes: int,
    machine: Machine,
    fallbacks: Fallbacks,
    *,
    quantize: str | None = None,
    replica: int = 0,
) -> Placement:
    """Choose the placement of replica `replica`. Raises ConfigError for impossible settings.

    A device map that no setting asks for is one of the `fallbacks`.
    """
    devices = _devices(settings, machine, replica)
    if settings.max_memory is not None:
        return _explicit_device_map(parse_max_memory(settings.max_memory), machine)
    ranks = _requested_ranks(settings.tensor_parallel, devices)
    reason: str | None = None
    if ranks > 1:
        obstacle = why_not_sharded(config, ranks)
        if quantize not in (None, "int8", "int4"):
            obstacle = obstacle or f"QUANTIZE={quantize} is for whole layers"
        if devices[0].type == "cuda" and not machine.has_nccl:
            obstacle = obstacle or "this build of torch has no NCCL"
        if obstacle is None:
            return Placement(devices if devices[0].type == "cuda" else devices * ranks)
        if settings.tensor_parallel is not None:
            raise ConfigError([f"TENSOR_PARALLEL={ranks} cannot work here: {obstacle}"])
        reason = obstacle
    gpus = [device.index for device in devices if device.type == "cuda"]
    if len(gpus) > 1:
        device_map_line = f"layers are spread over {len(gpus)} GPUs, which work one at a time"
        if reason is None:
            log.info("placement: %s, because TENSOR_PARALLEL=1 is set", device_map_line)
        else:
            remedy = "set DATA_PARALLEL to the number of GPUs if the model fits one of them"
            fallbacks.add("placement", f"{device_map_line}, since {reason}", remedy)
    elif not gpus or weight_bytes <= settings.cuda_memory_fraction * machine.gpu_bytes[gpus[0]]:
        return Placement(devices)
    else:
        fallbacks.add(
            "placement",
            f"the weights ({weight_bytes / 2**30:.1f} GiB) exceed the GPU's memory, so layers are "
            "offloaded to the CPU or the disk",
            "set QUANTIZE, or take an instance with more GPU memory",
        )
    fraction = WEIGHTS_FRACTION * settings.cuda_memory_fraction
    limits: dict[int | str, int] = {gpu: int(fraction * machine.gpu_bytes[gpu]) for gpu in gpus}
    return Placement(devices[:1], limits | {"cpu": int(WEIGHTS_FRACTION * machine.cpu_bytes)})


def _explicit_device_map(limits: dict[int | str, int], machine: Machine) -> Placement:
    """Use a device map over the devices of MAX_MEMORY; inputs go to the first GPU of them."""
    gpus = [name for name in limits if isinstance(name, int)]
    if missing := [gpu for gpu in gpus if gpu >= len(machine.gpu_bytes)]:
        raise ConfigError(
            [f"MAX_MEMORY names GPU {missing[0]}, but this machine has {len(machine.gpu_bytes)}"]
        )
    return Placement((torch.device("cuda", min(gpus)) if gpus else CPU,), limits)


def num_gpus(requested: int | None, available: int) -> int:
    """Return the number of GPUs to use. Raises ConfigError if it exceeds `available`.

    Without any GPU it is 0, as people keep the environment of another machine.
    """
    requested = available if requested is None else requested
    if available == 0:
        return 0
    if requested > available:
        raise ConfigError([f"SM_NUM_GPUS={requested}, but this machine has {available} GPUs"])
    return requested


def weight_bytes(
    folder: Path, config: PretrainedConfig, dtype: torch.dtype, quantize: str | None
) -> int:
    """Estimate the memory of a checkpoint's weights in this format, in bytes."""
    paths = next(
        (matching for pattern in WEIGHT_FILES if (matching := list(folder.glob(pattern)))), []
    )
    stored = getattr(config, "dtype", None)
    itemsize = BYTES_OF_A_WEIGHT.get(quantize or "", dtype.itemsize)
    ratio = itemsize / stored.itemsize if isinstance(stored, torch.dtype) else 1.0
    quantized = getattr(config, "quantization_config", None) is not None
    return int(sum(path.stat().st_size for path in paths) * (1.0 if quantized else ratio))


def _devices(
    settings: PlacementSettings, machine: Machine, replica: int
) -> tuple[torch.device, ...]:
    """Return the GPUs of this replica, or the CPU."""
    count = num_gpus(settings.num_gpus, len(machine.gpu_bytes))
    if count % settings.data_parallel:
        raise ConfigError(
            [f"DATA_PARALLEL={settings.data_parallel}: {count} GPUs cannot be divided equally"]
        )
    per_replica = count // settings.data_parallel
    if per_replica == 0:
        return (CPU,)
    return tuple(torch.device("cuda", replica * per_replica + i) for i in range(per_replica))


def _requested_ranks(requested: int | None, devices: tuple[torch.device, ...]) -> int:
    if requested is None:
        return len(devices)
    if devices[0].type == "cuda" and requested not in (1, len(devices)):
        raise ConfigError(
            [
                f"TENSOR_PARALLEL={requested}: each replica has {len(devices)} GPUs; "
                "set it to that or 1"
            ]
        )
    return requested
