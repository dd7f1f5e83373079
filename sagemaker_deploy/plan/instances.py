"""Instance types: their names, and GPUs and memory of those that serve language models.

The names are those of botocore's model of SageMaker. Figures are those of EC2's instance pages
(accelerated computing, general purpose, compute and memory optimised). Types whose figures are not
listed are deployed without a size check.
"""

import difflib
import re
from dataclasses import dataclass

from sagemaker_deploy import service_model

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
    "g7e": (
        "RTX PRO 6000", 96,
        {"2xlarge": 1, "4xlarge": 1, "8xlarge": 1, "12xlarge": 2, "24xlarge": 4, "48xlarge": 8},
    ),
    "p6-b200": ("B200", 179, {"48xlarge": 8}),
    "p6-b300": ("B300", 268, {"48xlarge": 8}),
    "p6e-gb200": ("GB200", 185, {"36xlarge": 4}),
}  # fmt: skip
# GiB of memory for each virtual CPU.
CPU_FAMILIES = {
    **dict.fromkeys(("c5", "c5d", "c6g", "c6gd", "c6gn", "c6i", "c6in", "c7g", "c7i", "c8g"), 2),
    **dict.fromkeys(("m4", "m5", "m5d", "m6g", "m6gd", "m6i", "m7i", "m8g"), 4),
    **dict.fromkeys(("r5", "r5d", "r6g", "r6gd", "r6i", "r7gd", "r7i", "r8g"), 8),
}
ARM, X86 = "arm64", "amd64"
# AWS's own processors: the g after the generation, and Grace beside Blackwell.
ARM_FAMILY = re.compile(r"[cmrt]\d+g[a-z]*|p\d+e-gb\d+")
# Accelerators that are no GPUs: torch cannot use them without AWS's own libraries.
NEURON_FAMILY = re.compile(r"(inf|trn)\d.*|dl1")
# Disks of the machine itself, whose size is fixed.
LOCAL_DISK_FAMILY = re.compile(
    r"(g4dn|g5|g6|g6e|g7|g7e|p4d|p4de|p5|p5e|p5en|p6.*|trn\d.*|dl1|[cmr]\d+g?d)"
)
TYPE_NAME = re.compile(r"ml\.([a-z0-9\-]+)\.(\d*x?large|medium|metal[a-z0-9\-]*)")


def known_types() -> tuple[str, ...]:
    """Return the instance types that endpoints may have."""
    return service_model.allowed_values(service_model.CONTROL, "ProductionVariantInstanceType")


def refusal(name: str) -> str | None:
    """Return why the service would refuse an instance type, with the nearest that it takes.

    None if it takes the type, or if the type may be newer than botocore's list.
    """
    known = known_types()
    if name in known or _is_newer(name, known):
        return None
    near = difflib.get_close_matches(name.lower(), known, 3, 0.6)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    sizes = [each for each in known if each.rpartition(".")[0] == name.rpartition(".")[0]]
    if sizes:
        return f"{name} does not exist{hint} The sizes of this family are: {', '.join(sizes)}"
    return f"{name} is no instance type of SageMaker endpoints{hint}"


def _is_newer(name: str, known: tuple[str, ...]) -> bool:
    """Whether an unknown name may be of a family that is newer than botocore's model."""
    match = TYPE_NAME.fullmatch(name)
    if not match:
        return False
    generation = re.fullmatch(r"([a-z]+)(\d+)([a-z0-9\-]*)", match[1])
    latest = [family(each) for each in known]
    if generation is None or match[1] in latest:
        return False
    numbers = [int(m[1]) for each in latest if (m := re.match(rf"{generation[1]}(\d+)", each))]
    return bool(numbers) and int(generation[2]) > max(numbers)


def family(name: str) -> str:
    """Return the family of an instance type, such as g5."""
    return name.removeprefix("ml.").partition(".")[0]


def architecture(name: str) -> str:
    """Return the architecture of the images that an instance type runs."""
    return ARM if ARM_FAMILY.fullmatch(family(name)) else X86


def has_neuron(name: str) -> bool:
    """Whether an instance type's accelerators need AWS's Neuron or Gaudi libraries."""
    return NEURON_FAMILY.fullmatch(family(name)) is not None


def has_local_disk(name: str) -> bool:
    """Whether models are stored on the machine's own disk, so that no volume can be asked for."""
    return LOCAL_DISK_FAMILY.fullmatch(family(name)) is not None


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
