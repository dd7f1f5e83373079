"""Makes the runner for a loaded model, with its cache, and captures its decodes."""

from collections.abc import Callable

import torch

from container.engine.engine import EngineConfig
from container.engine.model_runner import ModelRunner
from container.model.execution.cuda_graphs import graph_recorder, usual_sizes
from container.model.execution.forward_pass import ForwardPass
from container.model.execution.hf_cache_runner import OwnCacheRunner
from container.model.execution.model_runner import TorchModelRunner
from container.model.execution.vision_runner import ImageTextRunner
from container.model.forward_batch import MIN_ROWS, ForwardPlan
from container.model.kv_cache.cache import KVCache
from container.model.kv_cache.offload import HostCache
from container.model.loaded_model import LoadedModel
from container.model.lora.layers import Updates
from container.model.parallel.tensor_parallel import is_split


def recorded_sizes(
    wanted: tuple[int, ...] | None, model: LoadedModel, max_running: int
) -> list[int]:
    """Rows of the decodes that are to be recorded as CUDA graphs; none where that cannot be.

    `wanted` are numbers of sequences, None the usual ones. What several ranks do is recorded only
    on demand: a recording that fails on one of them would leave the others waiting.
    """
    if model.device.type != "cuda" or not model.can_record:
        return []
    if wanted is None:
        return [] if is_split(model.module) else usual_sizes(max_running)
    return sorted({max(MIN_ROWS, min(size, max_running)) for size in wanted})


def record_decodes(
    forward: ForwardPass,
    sizes: list[int],
    max_blocks: int,
    device: torch.device,
    progress: Callable[[str], None],
) -> None:
    """Record decodes of these rows; with several ranks all of them must call it."""
    if sizes:
        with torch.cuda.device(device):
            forward.record(sizes, max_blocks, graph_recorder(), progress)


def make_runner(
    model: LoadedModel,
    config: EngineConfig,
    *,
    end_token_ids: frozenset[int],
    updates: Updates | None = None,
    tell: Callable[[ForwardPlan], None] | None = None,
    overlaps: bool = False,
) -> ModelRunner:
    """Make what executes the engine's batches, with the cache that the engine counts on.

    `tell` hands the plan of each pass to the other ranks. `overlaps`: a step begins before the
    last one is read; a model with its own cache goes without.
    """
    if model.layers is None:
        kind = ImageTextRunner if model.reads_images else OwnCacheRunner
        return kind(model.module, model.device, end_token_ids=end_token_ids, updates=updates)
    forward = make_forward(
        model, config.num_blocks, config.block_size, updates, num_slots=config.num_slots
    )
    return TorchModelRunner(forward, end_token_ids=end_token_ids, tell=tell, overlaps=overlaps)


def make_forward(
    model: LoadedModel,
    num_blocks: int,
    block_size: int,
    updates: Updates | None = None,
    *,
    num_slots: int = 0,
) -> ForwardPass:
    """Make the cache of a paged model, with slots on the host, and what runs it."""
    assert model.layers is not None
    cache = KVCache(
        model.layers,
        num_blocks=num_blocks,
        block_size=block_size,
        dtype=model.cache_dtype or model.dtype,
        device=model.device,
    )
    return ForwardPass(
        model.module, cache, model.device, updates=updates, kinds=model.kinds,
        kernels=model.kernels, is_split=is_split(model.module),
        host=HostCache(cache, num_slots, model.device) if num_slots else None,
    )  # fmt: skip
