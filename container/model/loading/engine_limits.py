"""The engine's limits: its cache, its longest sequence, its batch."""

import logging

import torch

from container.engine.config import EngineConfig
from container.errors import ConfigError
from container.model.kv_cache.cache import BLOCK_SIZE
from container.model.loaded_model import LoadedModel, uses_device_map
from container.model.loading.memory_plan import (
    GIB,
    KVCapacity,
    MemoryPlan,
    batch_tokens,
    context_len,
    free_bytes,
    state_bytes,
)
from container.model.states.pieces import SEGMENT
from container.settings.engine import EngineSettings, MemorySettings

log = logging.getLogger(__name__)

# The default fraction of free host memory for offloaded blocks, and the most of it, in bytes.
SWAP_FRACTION, MAX_SWAP = 0.25, 16 * GIB


def size_engine(
    settings: EngineSettings, memory: MemorySettings, model: LoadedModel, capacity: KVCapacity
) -> EngineConfig:
    """Choose the cache's size and the limits, and log the memory plan.

    Raises ConfigError if a setting exceeds what the model or the memory allows.
    """
    device_type = model.device.type
    block_size = BLOCK_SIZE[device_type]
    context = context_len(model.text_config)
    if settings.max_total_tokens and settings.max_total_tokens > context:
        raise ConfigError(
            [
                f"MAX_TOTAL_TOKENS={settings.max_total_tokens} exceeds the model's context of "
                f"{context} tokens; lower it"
            ]
        )
    requested = settings.max_total_tokens or context
    per_token = model.bytes_per_token
    num_tokens = memory.max_batch_total_tokens
    # An encoder's part of a sequence ends with a block, and the decoder begins with some ids.
    padding = 0 if model.decoder is None else 2 * block_size
    if num_tokens is None:
        num_tokens = min(capacity.tokens, settings.max_batch_size * (requested + padding))
    num_blocks = num_tokens // block_size
    longest = min(requested, num_blocks * block_size - padding)
    if settings.max_total_tokens and longest < settings.max_total_tokens:
        raise ConfigError(
            [
                f"MAX_TOTAL_TOKENS={settings.max_total_tokens} exceeds the KV cache of {longest} "
                f"tokens ({per_token} bytes each); lower it"
            ]
        )
    if longest < 2:
        raise ConfigError(
            [
                f"not enough memory for the KV cache: room for {longest} tokens ({per_token} bytes "
                "each) after loading the weights; use a smaller model or more memory"
            ]
        )
    longest_input = settings.max_input_tokens or longest - 1
    if longest_input >= longest:
        raise ConfigError(
            [
                f"MAX_INPUT_TOKENS={longest_input} must be less than the longest sequence of "
                f"{longest} tokens; lower it"
            ]
        )
    cache_tokens = num_blocks * block_size
    num_snapshots = capacity.snapshots if memory.prefix_caching else 0
    plan = MemoryPlan(
        model.weight_bytes,
        capacity.activations,
        capacity.graph_bytes,
        cache_tokens * per_token,
        cache_tokens,
        state_bytes(model, capacity.state_slots + num_snapshots),
        capacity.state_slots,
        num_snapshots,
    )
    for line in plan.lines():
        log.info("%s", line)
    log.info("engine limits: at most %d tokens per sequence", longest)
    return EngineConfig(
        block_size=block_size,
        num_blocks=num_blocks,
        max_batch_tokens=capacity.batch_tokens or batch_tokens(settings, model),
        max_running=min(settings.max_batch_size, capacity.state_slots or settings.max_batch_size),
        max_input_tokens=longest_input,
        max_total_tokens=longest,
        max_requests=settings.max_concurrent_requests,
        vocabulary=model.text_config.vocab_size,
        # The model's own cache belongs to one sequence.
        reuses_prefixes=memory.prefix_caching and model.attention == "paged",
        scores_prompts=not model.has_encoder,
        speculate=_draft_tokens(settings.speculate, model),
        num_state_slots=capacity.state_slots,
        num_snapshots=num_snapshots,
        chunk_multiple=1 if model.mixers is None else SEGMENT,
        decoder_start=() if model.decoder is None else model.decoder.start,
    )


def _draft_tokens(requested: int, model: LoadedModel) -> int:
    """Return the number of draft tokens; warn if the model can have none."""
    if not requested or (model.attention == "paged" and not model.mixers):
        return requested
    # A rejected draft cannot be taken back out of a state or the model's own cache.
    reason = "the model is recurrent" if model.mixers else "the model uses its own cache"
    log.warning("engine limits: SPECULATE=%d has no effect: %s", requested, reason)
    return 0


def find_slots(settings: MemorySettings, model: LoadedModel, num_processes: int) -> int:
    """Return the number of slots in host memory for offloaded blocks.

    On a CPU the default is 0, since the cache is in the same memory. Raises ConfigError if
    SWAP_SPACE is set and cannot work.
    """
    requested = settings.swap_space
    if requested == 0 or (requested is None and model.device.type != "cuda"):
        return 0
    reason = None
    if model.layers is None:
        reason = "the model uses its own cache"
    elif model.mixers is not None:
        reason = "the model is recurrent, and its states are not offloaded"
    elif uses_device_map(model.module):
        reason = "the model's layers are on several devices"
    elif not settings.prefix_caching:
        reason = "PREFIX_CACHING is off"
    if reason is not None:
        if requested is not None:
            raise ConfigError([f"SWAP_SPACE cannot work here: {reason}"])
        return 0
    free = free_bytes(torch.device("cpu"), 1.0) / num_processes
    space = (
        min(free * SWAP_FRACTION, MAX_SWAP / num_processes)
        if requested is None
        else requested * GIB / num_processes
    )
    if space > free:
        free_gib = free * num_processes / GIB
        raise ConfigError(
            [f"SWAP_SPACE={requested:.12g} exceeds the {free_gib:.1f} GiB of free memory; lower it"]
        )
    slots = int(space) // (model.bytes_per_token * BLOCK_SIZE[model.device.type])
    if requested is not None and slots == 0:
        raise ConfigError(
            [f"SWAP_SPACE={requested:.12g} is less than one block of the KV cache; raise it"]
        )
    return slots
