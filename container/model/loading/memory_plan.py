"""The memory plan: what weights, steps and the KV cache take of each device."""

import logging
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import torch
from transformers import PretrainedConfig

from container.engine.adapters import NO_ADAPTER
from container.engine.schedule import BlockCopy
from container.engine.scheduler import MAX_PROMPT_LOGPROBS
from container.machine import free_memory_bytes
from container.messages.engine import SamplingParams
from container.model.attention.varlen import Kernel
from container.model.execution.factory import capture_sizes, make_forward
from container.model.forward_batch import ChunkPlan, ForwardPlan
from container.model.kv_cache.cache import BLOCK_SIZE
from container.model.loaded_model import LoadedModel
from container.model.parallel.placement import Placement
from container.model.parallel.tensor_parallel import least_over_ranks
from container.model.sampling.device import choose_on_device
from container.settings.engine import EngineSettings
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
GRAPH_MARGIN = GIB // 4
# What drivers, libraries and fragments take of a GPU beside the tensors.
GPU_MARGIN = 512 * 2**20
LONG_SEQUENCE = 4096
TURNS = 3


@dataclass(frozen=True, slots=True)
class KVCapacity:
    """Tokens for whose keys and values there is memory, and bytes that a step needs besides.

    `graph_bytes` are the bytes that CUDA graphs keep.
    """

    tokens: int
    activations: int | None = None
    graph_bytes: int = 0


def measure_capacity(settings: Settings, model: LoadedModel, placement: Placement) -> KVCapacity:
    """Look at the memory that is left; every rank must call it, and all get the same tokens."""
    # Ranks and copies on a CPU share its memory.
    num_processes = len(placement.devices) * settings.placement.data_parallel
    activations = measure_activations(
        model,
        batch_tokens(settings.engine, model),
        settings.engine.max_batch_size + MAX_PROMPT_LOGPROBS,
        settings.engine.max_batch_size,
        context_len(model.text_config),
    )
    graph_bytes = _graph_bytes(settings.engine, model)
    tokens = _capacity(
        model,
        num_processes,
        (activations or 0) + graph_bytes,
        max_batch_size=settings.engine.max_batch_size,
        gpu_fraction=settings.placement.cuda_memory_fraction,
        has_own_gpu=is_alone(settings.embedding.embedding_model_id),
    )
    tokens = least_over_ranks(tokens) if placement.is_tensor_parallel else tokens
    return KVCapacity(tokens, activations, graph_bytes)


def _graph_bytes(settings: EngineSettings, model: LoadedModel) -> int:
    """What recorded decodes keep: the logits, these while they are made, and smaller things."""
    if not capture_sizes(settings.cuda_graphs, model, settings.max_batch_size):
        return 0
    return GRAPH_MARGIN + 10 * settings.max_batch_size * model.text_config.vocab_size


def _capacity(
    model: LoadedModel,
    num_processes: int,
    activations: int,
    *,
    max_batch_size: int,
    gpu_fraction: float,
    has_own_gpu: bool,
) -> int:
    """Tokens that fit this rank; where layers lie on several devices, each keeps its own share."""
    per_device: dict[torch.device, int] = {}
    for layer in model.layers or []:
        device = layer.device or model.device
        per_device[device] = per_device.get(device, 0) + layer.numbers_per_token

    def share(device: torch.device) -> int:
        free = free_bytes(device, gpu_fraction)
        if device.type == "cpu":
            return int(free * CACHE_SHARE) // num_processes
        others = GPU_SHARE if has_own_gpu else GPU_SHARE_WITH_OTHERS
        return max(0, int(free * others) - activations - GPU_MARGIN)

    if model.kernels.chunks is not Kernel.PAGED and model.device.type == "cuda":
        # Keys and values of a layer are gathered before they are attended to, and repeated for
        # the query heads; prefixes that sequences share are gathered for each.
        for device in per_device:
            per_device[device] += 2 * max(layer.numbers_per_token for layer in model.layers or [])

    if not per_device:  # the model's own cache
        left = share(model.device) - max_batch_size * model.bytes_per_sequence
        return max(0, left) // model.bytes_per_token
    return min(
        share(device) // (numbers * (model.cache_dtype or model.dtype).itemsize)
        for device, numbers in per_device.items()
    )


def is_alone(embedding_model_id: str | None) -> bool:
    """Whether no other model is served on the same GPU, as far as the settings say."""
    return embedding_model_id is None and PARENT_PID not in os.environ


def batch_tokens(settings: EngineSettings, model: LoadedModel) -> int:
    """Return how many tokens a step may have."""
    return settings.max_batch_prefill_tokens or BATCH_TOKENS[model.device.type]


def context_len(config: PretrainedConfig) -> int:
    """How long a sequence may be. Models without positions to run out of have none of the names."""
    lengths = (getattr(config, name, None) for name in CONTEXT_NAMES)
    return next((int(length) for length in lengths if length), UNSTATED_CONTEXT)


def free_bytes(device: torch.device, gpu_fraction: float) -> int:
    """Return the free memory of a device, within the process's limits."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(0, int(free - (1 - gpu_fraction) * total))
    return free_memory_bytes()


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of one rank; `activations` is what the largest step needs, None where not measured.

    `graph_bytes` are CUDA graphs' own.
    """

    weights: int
    activations: int | None
    graph_bytes: int
    cache: int
    tokens: int

    def lines(self) -> list[str]:
        """A table for the log."""
        rows = [("weights", self.weights, "")]
        if self.activations is not None:
            rows.append(("activations", self.activations, "the largest step, measured"))
        if self.graph_bytes:
            rows.append(("CUDA graphs", self.graph_bytes, ""))
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
        choose_on_device(logits[: len(params)], params, [0.5] * len(params))
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
        positions=[position % context for position in ids],
        slot_mapping=ids,
        logit_rows=ids[-num_rows:],
        groups=[],
        chunks=[ChunkPlan(0, num_tokens, num_tokens, blocks)],
        num_decodes=0,
        adapters=[(NO_ADAPTER, num_tokens)],
    )


def is_faster_to_copy(
    run: Callable[[ForwardPlan], object], prompt: ForwardPlan, num_slots: int, device: torch.device
) -> bool:
    """Whether bringing a prompt's blocks back takes less time than computing the prompt.

    Both are measured; the log has the figures. With several ranks, `run` is to reach them all.
    """
    (chunk,) = prompt.chunks
    copies = [
        BlockCopy(False, block, index % num_slots) for index, block in enumerate(chunk.block_table)
    ]
    alone, with_copies = (
        _median_seconds(run, msgspec.structs.replace(prompt, copies=block_copies), device)
        for block_copies in ([], copies)
    )
    log.info(
        "%d tokens are computed in %.1f ms and copied from the host in %.1f ms",
        chunk.context_len, alone * 1e3, (with_copies - alone) * 1e3,
    )  # fmt: skip
    return with_copies < 2 * alone


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
