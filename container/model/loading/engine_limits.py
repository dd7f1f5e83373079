"""The engine's limits: its cache, its longest sequence, its batch."""

import logging

import torch

from container.engine.engine import EngineConfig
from container.errors import ConfigError
from container.model.kv_cache.cache import BLOCK_SIZE
from container.model.loaded_model import LoadedModel, is_spread
from container.model.loading.memory_plan import (
    GIB,
    MemoryPlan,
    Room,
    batch_tokens,
    context_len,
    free_bytes,
)
from container.settings.settings import Settings

log = logging.getLogger(__name__)

# Of the host's free memory for prefixes, if nobody says how much, and the most of it.
SWAP_SHARE, MAX_SWAP = 0.25, 16 * GIB


def size_engine(settings: Settings, model: LoadedModel, room: Room) -> EngineConfig:
    """Decide the cache's size and the limits, and tell what takes the memory.

    Raises ConfigError when a limit cannot be kept.
    """
    kind = model.device.type
    block_size = BLOCK_SIZE[kind]
    context = context_len(model.text_config)
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
        max_batch_tokens=batch_tokens(settings, model),
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
    free = free_bytes(torch.device("cpu"), 1.0) / sharers
    space = min(free * SWAP_SHARE, MAX_SWAP / sharers) if wanted is None else wanted * GIB / sharers
    if space > free:
        told = f"SWAP_SPACE={wanted:.12g}, but {free * sharers / GIB:.1f} GiB are free"
        raise ConfigError([told])
    slots = int(space) // (model.bytes_per_token * BLOCK_SIZE[model.device.type])
    if wanted is not None and slots == 0:
        raise ConfigError([f"SWAP_SPACE={wanted:.12g} is less than a block of the KV cache"])
    return slots
