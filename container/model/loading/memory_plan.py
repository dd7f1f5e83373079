"""The memory plan: what weights, steps and the KV cache take of each device."""

import logging
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil
import torch
from transformers import PretrainedConfig

from container.engine.adapters import BASE
from container.engine.schedule import Move
from container.engine.scheduler import MAX_SCORED
from container.messages.engine import SamplingParams
from container.model.attention.varlen import Kernel
from container.model.execution.factory import make_forward, recorded_sizes
from container.model.forward_batch import ChunkPlan, ForwardPlan
from container.model.kv_cache.cache import BLOCK_SIZE
from container.model.loaded_model import LoadedModel
from container.model.parallel.placement import Placement
from container.model.parallel.tensor_parallel import least_over_ranks
from container.model.sampling.device import choose
from container.settings.process_env import PARENT_PID
from container.settings.settings import Settings

log = logging.getLogger(__name__)

BATCH_TOKENS = {"cpu": 256, "cuda": 2048}
# What models call the longest sequence; the last ones are BLOOM's and MPT's.
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len")
# Of a GPU's memory that is free once the weights are loaded; others are the embedding model, or the
# other models of a multi-model endpoint.
GPU_SHARE, GPU_SHARE_WITH_OTHERS = 0.95, 0.5
UNSTATED_CONTEXT = 32_768
CACHE_SHARE = 0.5  # of the CPU's memory that is free once the weights are loaded
GIB = 2**30
# What libraries, attention and the graphs themselves take for recorded decodes.
RECORDING_MARGIN = GIB // 4
# What drivers, libraries and fragments take of a GPU beside the tensors.
GPU_MARGIN = 512 * 2**20
LONG_SEQUENCE = 4096
TURNS = 3


@dataclass(frozen=True, slots=True)
class Room:
    """Tokens for whose keys and values there is memory, and bytes that a step needs besides.

    `recordings` are the bytes that CUDA graphs keep.
    """

    tokens: int
    activations: int | None = None
    recordings: int = 0


def find_room(settings: Settings, model: LoadedModel, placement: Placement) -> Room:
    """Look at the memory that is left; every rank must call it, and all get the same tokens."""
    # Ranks and copies on a CPU share its memory.
    sharers = len(placement.devices) * settings.data_parallel
    activations = measure_activations(
        model,
        batch_tokens(settings, model),
        settings.max_batch_size + MAX_SCORED,
        settings.max_batch_size,
        context_len(model.text_config),
    )
    recordings = _recording_bytes(settings, model)
    tokens = _capacity(settings, model, sharers, (activations or 0) + recordings)
    tokens = least_over_ranks(tokens) if placement.is_split else tokens
    return Room(tokens, activations, recordings)


def _recording_bytes(settings: Settings, model: LoadedModel) -> int:
    """What recorded decodes keep: the logits, these while they are made, and smaller things."""
    if not recorded_sizes(settings.cuda_graphs, model, settings.max_batch_size):
        return 0
    return RECORDING_MARGIN + 10 * settings.max_batch_size * model.text_config.vocab_size


def _capacity(settings: Settings, model: LoadedModel, sharers: int, activations: int) -> int:
    """Tokens that fit this rank; where layers lie on several devices, each keeps its own share."""
    per_device: dict[torch.device, int] = {}
    for layer in model.layers or []:
        device = layer.device or model.device
        per_device[device] = per_device.get(device, 0) + layer.numbers_per_token

    def share(device: torch.device) -> int:
        free = free_bytes(device, settings.cuda_memory_fraction)
        if device.type == "cpu":
            return int(free * CACHE_SHARE) // sharers
        others = GPU_SHARE if is_alone(settings) else GPU_SHARE_WITH_OTHERS
        return max(0, int(free * others) - activations - GPU_MARGIN)

    if model.kernels.chunks is not Kernel.PAGED and model.device.type == "cuda":
        # Keys and values of a layer are gathered before they are attended to, and repeated for
        # the query heads; prefixes that sequences share are gathered for each.
        for device in per_device:
            per_device[device] += 2 * max(layer.numbers_per_token for layer in model.layers or [])

    if not per_device:  # the model's own cache
        left = share(model.device) - settings.max_batch_size * model.bytes_per_sequence
        return max(0, left) // model.bytes_per_token
    return min(
        share(device) // (numbers * (model.cache_dtype or model.dtype).itemsize)
        for device, numbers in per_device.items()
    )


def is_alone(settings: Settings) -> bool:
    """Whether no other model is served on the same GPU, as far as the settings say."""
    return settings.embedding_model_id is None and PARENT_PID not in os.environ


def batch_tokens(settings: Settings, model: LoadedModel) -> int:
    """Return how many tokens a step may have."""
    return settings.max_batch_prefill_tokens or BATCH_TOKENS[model.device.type]


def context_len(config: PretrainedConfig) -> int:
    """How long a sequence may be. Models without positions to run out of have none of the names."""
    found = (getattr(config, name, None) for name in CONTEXT_NAMES)
    return next((int(length) for length in found if length), UNSTATED_CONTEXT)


def free_bytes(device: torch.device, gpu_fraction: float) -> int:
    """Return the free memory of a device, within the process's limits."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(0, int(free - (1 - gpu_fraction) * total))
    return min(psutil.virtual_memory().available, _cgroup_free_bytes())


def _cgroup_free_bytes() -> int:
    """What a container's memory limit leaves; no limit is a very large number."""
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text().strip()
        current = int((root / "memory.current").read_text())
    except (OSError, ValueError):
        return 2**62
    return max(0, int(limit) - current) if limit.isdigit() else 2**62


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of one rank; `activations` is what the largest step needs, None where not measured.

    `recordings` are CUDA graphs' own.
    """

    weights: int
    activations: int | None
    recordings: int
    cache: int
    tokens: int

    def lines(self) -> list[str]:
        """A table for the log."""
        rows = [("weights", self.weights, "")]
        if self.activations is not None:
            rows.append(("activations", self.activations, "the largest step, measured"))
        if self.recordings:
            rows.append(("CUDA graphs", self.recordings, ""))
        fits = f"{self.tokens:,} tokens, or {self.tokens // LONG_SEQUENCE:,} sequences of "
        rows.append(("KV cache", self.cache, f"{fits}{LONG_SEQUENCE:,}"))
        return [f"{name:<12} {size / GIB:>8.2f} GiB  {note}".rstrip() for name, size, note in rows]


def measure_activations(
    model: LoadedModel, num_tokens: int, num_rows: int, num_sequences: int, context: int
) -> int | None:
    """Bytes that a step of so many prompt tokens and rows of logits takes for a while.

    So many sequences sample. None on a CPU, where torch does not count. With several ranks all of
    them must call it.
    """
    if model.device.type != "cuda" or model.layers is None:
        return None
    size = BLOCK_SIZE["cuda"]
    forward = make_forward(model, num_blocks=-(-num_tokens // size), block_size=size)
    torch.cuda.synchronize(model.device)
    before = torch.cuda.memory_allocated(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    with torch.inference_mode():
        logits = forward.run(largest_step(num_tokens, num_rows, block_size=size, context=context))
        params = [SamplingParams(1, temperature=1.0, top_p=0.9)] * min(num_sequences, num_rows)
        choose(logits[: len(params)], params, [0.5] * len(params))
    del logits
    torch.cuda.synchronize(model.device)
    peak = torch.cuda.max_memory_allocated(model.device) - before
    del forward
    torch.cuda.empty_cache()
    return peak


def largest_step(num_tokens: int, num_rows: int, *, block_size: int, context: int) -> ForwardPlan:
    """One prompt of so many tokens, with logits of the last rows.

    Positions begin anew where the model has no more.
    """
    ids = list(range(num_tokens))
    blocks = list(range(-(-num_tokens // block_size)))
    return ForwardPlan(
        token_ids=[0] * num_tokens,
        positions=[place % context for place in ids],
        slots=ids,
        logit_rows=ids[-num_rows:],
        groups=[],
        chunks=[ChunkPlan(0, num_tokens, num_tokens, blocks)],
        num_decodes=0,
        adapters=[(BASE, num_tokens)],
    )


def is_faster_to_copy(
    run: Callable[[ForwardPlan], object], prompt: ForwardPlan, num_slots: int, device: torch.device
) -> bool:
    """Whether bringing a prompt's blocks back takes less time than computing the prompt.

    Both are measured; the log has the figures. With several ranks, `run` is to reach them all.
    """
    (chunk,) = prompt.chunks
    moves = [Move(False, block, index % num_slots) for index, block in enumerate(chunk.blocks)]
    alone, beside = (
        _median_seconds(run, msgspec.structs.replace(prompt, moves=some), device)
        for some in ([], moves)
    )
    log.info(
        "%d tokens are computed in %.1f ms and copied from the host in %.1f ms",
        chunk.context_len, alone * 1e3, (beside - alone) * 1e3,
    )  # fmt: skip
    return beside < 2 * alone


def _median_seconds(
    run: Callable[[ForwardPlan], object], plan: ForwardPlan, device: torch.device
) -> float:
    times = []
    for _ in range(1 + TURNS):
        started = time.perf_counter()
        run(plan)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])  # the first one warms up
