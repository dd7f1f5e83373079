"""Instance types: GPUs and memory of the families that serve language models.

Figures are those of EC2's instance pages (accelerated computing, general purpose, compute and
memory optimised). Types that are not listed are deployed without a size check.
"""

import re
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance type. A CPU instance has no GPUs."""

    name: str
    gpus: int
    gpu: str
    gpu_memory_gib: int
    memory_gib: int

    @property
    def model_memory_bytes(self) -> int:
        """Memory for weights and KV cache: of all GPUs, or of the machine."""
        gib = self.gpus * self.gpu_memory_gib if self.gpus else self.memory_gib
        return gib * GIB

    @property
    def shown(self) -> str:
        """Description for the user."""
        if self.gpus:
            return f"{self.name} ({self.gpus} x {self.gpu}, {self.gpu_memory_gib} GiB each)"
        return f"{self.name} (no GPU, {self.memory_gib} GiB of memory)"


# family: GPU, GiB of one GPU, {size: number of GPUs}
_SMALL = {"xlarge": 1, "2xlarge": 1, "4xlarge": 1, "8xlarge": 1, "16xlarge": 1}
GPU_FAMILIES: dict[str, tuple[str, int, dict[str, int]]] = {
    "g4dn": ("T4", 16, {**_SMALL, "12xlarge": 4}),
    "g5": ("A10G", 24, {**_SMALL, "12xlarge": 4, "24xlarge": 4, "48xlarge": 8}),
    "g6": ("L4", 24, {**_SMALL, "12xlarge": 4, "24xlarge": 4, "48xlarge": 8}),
    "g6e": ("L40S", 48, {**_SMALL, "12xlarge": 4, "24xlarge": 4, "48xlarge": 8}),
    "p3": ("V100", 16, {"2xlarge": 1, "8xlarge": 4, "16xlarge": 8}),
    "p4d": ("A100", 40, {"24xlarge": 8}),
    "p4de": ("A100", 80, {"24xlarge": 8}),
    "p5": ("H100", 80, {"4xlarge": 1, "48xlarge": 8}),
    "p5e": ("H200", 141, {"48xlarge": 8}),
    "p5en": ("H200", 141, {"48xlarge": 8}),
}
# GiB of memory for each virtual CPU.
CPU_FAMILIES = {
    "c5": 2,
    "c6i": 2,
    "c7i": 2,
    "m5": 4,
    "m6i": 4,
    "m7i": 4,
    "r5": 8,
    "r6i": 8,
    "r7i": 8,
}


def find(name: str) -> Instance | None:
    """Look up an instance type."""
    match = re.fullmatch(r"ml\.([a-z0-9\-]+)\.(\d*x?large)", name)
    if not match:
        return None
    family, size = match.groups()
    if family in GPU_FAMILIES:
        gpu, gib, counts = GPU_FAMILIES[family]
        return Instance(name, counts[size], gpu, gib, 0) if size in counts else None
    if family in CPU_FAMILIES:
        return Instance(name, 0, "", 0, _virtual_cpus(size) * CPU_FAMILIES[family])
    return None


def _virtual_cpus(size: str) -> int:
    if size == "large":
        return 2
    return 4 * int(size.removesuffix("xlarge") or 1)
