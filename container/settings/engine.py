"""Settings of the engine: its limits, its memory and its devices."""

from dataclasses import dataclass

from container.settings.casts import (
    batch_sizes,
    flag,
    gibibytes,
    gpu_count,
    integer,
    max_memory,
    positive_fraction,
)
from container.settings.field import setting


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The engine's limits and how it runs steps."""

    max_input_tokens: int | None = setting(
        None, "MAX_INPUT_TOKENS", "MAX_INPUT_LENGTH", cast=integer(1),
        meaning="Longest prompt, in tokens. Unset: MAX_TOTAL_TOKENS - 1.",
    )  # fmt: skip
    max_total_tokens: int | None = setting(
        None, "MAX_TOTAL_TOKENS", cast=integer(2),
        meaning="Longest prompt and completion together. Unset: the model's context.",
    )  # fmt: skip
    max_batch_prefill_tokens: int | None = setting(
        None, "MAX_BATCH_PREFILL_TOKENS", cast=integer(1),
        meaning="Most tokens in one step. Unset: 256 on a CPU, 2048 on a GPU.",
    )  # fmt: skip
    max_batch_size: int = setting(
        64, "MAX_BATCH_SIZE", cast=integer(1, 4096),
        meaning="Most sequences in one step.",
    )  # fmt: skip
    max_concurrent_requests: int = setting(
        128, "MAX_CONCURRENT_REQUESTS", cast=integer(1),
        meaning="Requests that each replica takes at a time, waiting ones included; one more gets "
        "a 429.",
    )  # fmt: skip
    speculate: int = setting(
        0, "SPECULATE", cast=integer(0, 32),
        meaning="Draft tokens from earlier text, verified in the same step; 0: none. For few "
        "clients and text that repeats itself; never changes an answer.",
    )  # fmt: skip
    overlap_steps: bool | None = setting(
        None, "OVERLAP_STEPS", cast=flag,
        meaning="Begin a step before the tokens of the last one are read, so that a GPU never "
        "waits. Unset: on a GPU. Without effect with SPECULATE, or for a model with its own cache.",
    )  # fmt: skip
    require_fast_path: bool = setting(
        False, "REQUIRE_FAST_PATH", cast=flag,
        meaning="Refuse to start on a slow path that another setting, machine, package or "
        "checkpoint would avoid: without paged attention, compiled kernels, fused attention or "
        "CUDA graphs. Unset: the log warns, and `/info` has the reasons as `fallbacks`.",
    )  # fmt: skip
    cuda_graphs: tuple[int, ...] | None = setting(
        None, "CUDA_GRAPHS", cast=batch_sizes,
        meaning="Batch sizes for which a decode step is captured as a CUDA graph; 0: none. Unset: "
        "up to MAX_BATCH_SIZE, unless the model is sharded over GPUs.",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """The KV cache."""

    max_batch_total_tokens: int | None = setting(
        None, "MAX_BATCH_TOTAL_TOKENS", cast=integer(16),
        meaning="Size of the KV cache, in tokens. Unset: as many as half of a CPU's free memory "
        "holds, or nearly all of a GPU's.",
    )  # fmt: skip
    swap_space: float | None = setting(
        None, "SWAP_SPACE", cast=gibibytes,
        meaning="GiB of host memory for prefixes that no longer fit the GPU's cache; 0: none. "
        "Unset: a quarter of the free memory, at most 16, if copying a prefix back is "
        "faster than computing it again; the start measures it.",
    )  # fmt: skip
    prefix_caching: bool = setting(
        True, "PREFIX_CACHING", cast=flag,
        meaning="Compute a prefix that several prompts share only once.",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class PlacementSettings:
    """The devices that the model's weights are placed on."""

    num_gpus: int | None = setting(
        None, "SM_NUM_GPUS", "NUM_SHARD", cast=gpu_count, wins="SM_NUM_GPUS",
        meaning="GPUs to use. Unset or `all`: every visible one; 0 or none: the CPU. On a "
        "machine without a GPU any number means the CPU.",
    )  # fmt: skip
    data_parallel: int = setting(
        1, "DATA_PARALLEL", cast=integer(1, 64),
        meaning="Replicas of the model, each with its own engine and an equal part of the GPUs.",
    )  # fmt: skip
    tensor_parallel: int | None = setting(
        None, "TENSOR_PARALLEL", cast=integer(1, 64),
        meaning="Ranks that share every layer of a replica, each on a GPU, or all on the CPU. "
        "Unset: one for each GPU of a replica, if the model can be sharded; if not, or "
        "with 1, whole layers are placed on the GPUs.",
    )  # fmt: skip
    max_memory: str | None = setting(
        None, "MAX_MEMORY", cast=max_memory,
        meaning="Place whole layers on devices within these limits, such as "
        "`0=20GiB,1=20GiB,cpu=60GiB`; layers that fit nowhere are read from disk in every "
        "step.",
    )  # fmt: skip
    cuda_memory_fraction: float = setting(
        1.0, "CUDA_MEMORY_FRACTION", cast=positive_fraction,
        meaning="Fraction of a GPU's memory that the server may use.",
    )  # fmt: skip
