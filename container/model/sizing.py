"""Sizing: how large the KV cache is, and what follows for the longest sequence."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from transformers import PretrainedConfig

from container.engine.loop import EngineConfig
from container.engine.scheduler import MAX_SCORED
from container.errors import ConfigError
from container.model.kv_cache import BLOCK_SIZE
from container.model.memory import GIB, GPU_MARGIN, MemoryPlan, measure_activations
from container.model.paging import is_spread
from container.model.placement import Placement
from container.model.preparing import LoadedModel, recorded_sizes
from container.model.sharding import least_over_ranks
from container.model.varlen import Kernel
from container.settings import PARENT_PID, Settings

log = logging.getLogger(__name__)

BATCH_TOKENS = {"cpu": 256, "cuda": 2048}
# What models call the longest sequence; the last ones are BLOOM's and MPT's.
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len")
# Of a GPU's memory that is free once the weights are loaded; others are the embedding model, or the
# other models of a multi-model endpoint.
GPU_SHARE, GPU_SHARE_WITH_OTHERS = 0.95, 0.5
UNSTATED_CONTEXT = 32_768
# What libraries, attention and the graphs themselves take for recorded decodes.
RECORDING_MARGIN = GIB // 4
# Of the host's free memory for prefixes, if nobody says how much, and the most of it.
SWAP_SHARE, MAX_SWAP = 0.25, 16 * GIB
CACHE_SHARE = 0.5  # of the CPU's memory that is free once the weights are loaded


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
        _batch_tokens(settings, model),
        settings.max_batch_size + MAX_SCORED,
        settings.max_batch_size,
        _context(model.text_config),
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
        free = _free_bytes(device, settings.cuda_memory_fraction)
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


def size_engine(settings: Settings, model: LoadedModel, room: Room) -> EngineConfig:
    """Decide the cache's size and the limits, and tell what takes the memory.

    Raises ConfigError when a limit cannot be kept.
    """
    kind = model.device.type
    block_size = BLOCK_SIZE[kind]
    context = _context(model.text_config)
    if settings.max_total_tokens and settings.max_total_tokens > context:
        raise ConfigError(
            [f"MAX_TOTAL_TOKENS={settings.max_total_tokens}, but the model's context is {context}"]
        )
    wanted = settings.max_total_tokens or context
    per_token = model.bytes_per_token
    num_tokens = settings.max_batch_total_tokens
    if num_tokens is None:
        num_tokens = min(room.tokens, settings.max_batch_size * wanted)
    num_blocks = num_tokens // block_size
    longest = min(wanted, num_blocks * block_size)
    if settings.max_total_tokens and longest < settings.max_total_tokens:
        raise ConfigError(
            [
                f"MAX_TOTAL_TOKENS={settings.max_total_tokens}, but the KV cache holds {longest} "
                f"tokens of {per_token} bytes each"
            ]
        )
    if longest < 2:
        told = f"the weights leave memory for {longest} tokens only, of {per_token} bytes each"
        raise ConfigError([told])
    longest_input = settings.max_input_tokens or longest - 1
    if longest_input >= longest:
        raise ConfigError([f"MAX_INPUT_TOKENS={longest_input} must be less than {longest}"])
    kept = num_blocks * block_size
    plan = MemoryPlan(model.weight_bytes, room.activations, room.recordings, kept * per_token, kept)
    for line in plan.lines():
        log.info("%s", line)
    log.info("a sequence may have %d tokens", longest)
    return EngineConfig(
        block_size=block_size,
        num_blocks=num_blocks,
        max_batch_tokens=_batch_tokens(settings, model),
        max_running=settings.max_batch_size,
        max_input_tokens=longest_input,
        max_total_tokens=longest,
        max_requests=settings.max_concurrent_requests,
        vocabulary=model.text_config.vocab_size,
        # The model's own cache belongs to one sequence.
        reuses_prefixes=settings.prefix_caching and model.attention == "paged",
        scores_prompts=not model.has_encoder,
        speculate=settings.speculate if model.attention == "paged" else 0,
    )


def find_slots(settings: Settings, model: LoadedModel, sharers: int) -> int:
    """Blocks of the host's memory for prefixes that the cache has no room for; on a CPU only if
    wanted, as it is the same memory.

    Raises ConfigError when they are wanted and cannot be.
    """
    wanted = settings.swap_space
    if wanted == 0 or (wanted is None and model.device.type != "cuda"):
        return 0
    reason = None
    if model.layers is None:
        reason = "the model keeps its own cache"
    elif is_spread(model.module):
        reason = "the model's layers lie on several devices"
    elif not settings.prefix_caching:
        reason = "PREFIX_CACHING is off"
    if reason is not None:
        if wanted is not None:
            raise ConfigError([f"SWAP_SPACE cannot work here: {reason}"])
        return 0
    free = _free_bytes(torch.device("cpu"), 1.0) / sharers
    space = min(free * SWAP_SHARE, MAX_SWAP / sharers) if wanted is None else wanted * GIB / sharers
    if space > free:
        told = f"SWAP_SPACE={wanted:.12g}, but {free * sharers / GIB:.1f} GiB are free"
        raise ConfigError([told])
    slots = int(space) // (model.bytes_per_token * BLOCK_SIZE[model.device.type])
    if wanted is not None and slots == 0:
        raise ConfigError([f"SWAP_SPACE={wanted:.12g} is less than a block of the KV cache"])
    return slots


def _batch_tokens(settings: Settings, model: LoadedModel) -> int:
    return settings.max_batch_prefill_tokens or BATCH_TOKENS[model.device.type]


def _context(config: PretrainedConfig) -> int:
    """How long a sequence may be. Models without positions to run out of have none of the names."""
    found = (getattr(config, name, None) for name in CONTEXT_NAMES)
    return next((int(length) for length in found if length), UNSTATED_CONTEXT)


def _free_bytes(device: torch.device, gpu_fraction: float) -> int:
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
