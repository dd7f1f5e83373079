"""The memory plan: bytes of weights, activations, CUDA graphs and KV cache on each device."""

import logging
import os
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from container.engine.scheduler import MAX_PROMPT_LOGPROBS
from container.errors import ModelLoadError
from container.machine import free_memory_bytes
from container.model.attention.varlen import Kernel
from container.model.execution.factory import capture_sizes
from container.model.execution.step_measurement import measure_activations
from container.model.loaded_model import LoadedModel
from container.model.parallel.placement import Placement
from container.model.parallel.tensor_parallel import least_over_ranks
from container.model.states.pieces import SEGMENT
from container.settings.engine import EngineSettings, PlacementSettings
from container.settings.process_env import PARENT_PID

log = logging.getLogger(__name__)

BATCH_TOKENS = {"cpu": 256, "cuda": 2048}
# A GPU without memory for a step of this many tokens is refused.
LEAST_BATCH_TOKENS = 128
# Names of the longest sequence in configurations; the last two are BLOOM's and MPT's.
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len")
# Fractions of a GPU's free memory after loading the weights, without and with other models on it:
# an embedding model, or the other models of a multi-model endpoint.
GPU_FRACTION, GPU_FRACTION_WITH_OTHERS = 0.95, 0.5
UNSTATED_CONTEXT = 32_768
CACHE_FRACTION = 0.5  # of the CPU's memory that is free once the weights are loaded
# The most snapshots of states for each running sequence.
SNAPSHOTS = 2
STATE_FRACTION = 0.5  # of the cache's memory, at most, for the states of a recurrent model
GIB = 2**30
# Memory of libraries, attention and the graphs themselves for captured decodes.
GRAPH_MARGIN = GIB // 4
# Memory of a GPU that drivers, libraries and fragmentation take besides the tensors.
GPU_MARGIN = 512 * 2**20
LONG_SEQUENCE = 4096


@dataclass(frozen=True, slots=True)
class KVCapacity:
    """The tokens that a KV cache has memory for, after these bytes for a step.

    `activations` is None where it is not measured; `graph_bytes` are those of CUDA graphs.
    `state_slots` are those of a recurrent model, and `snapshots` those of its states.
    `batch_tokens` are those of the largest step that fits.
    """

    tokens: int
    activations: int | None = None
    graph_bytes: int = 0
    state_slots: int = 0
    snapshots: int = 0
    batch_tokens: int = 0


def measure_capacity(
    settings: EngineSettings,
    placement_settings: PlacementSettings,
    model: LoadedModel,
    placement: Placement,
    *,
    has_own_gpu: bool,
) -> KVCapacity:
    """Measure the memory that is left; every rank must call it, and all get the same tokens.

    `has_own_gpu`: no other model is on the same GPU; see `is_only_model`.
    """
    # Ranks and replicas on a CPU share its memory.
    num_processes = len(placement.devices) * placement_settings.data_parallel
    largest, activations = _measure_largest_step(settings, model, placement)
    graph_bytes = _graph_bytes(settings, model)
    tokens, slots, snapshots = _capacity(
        model,
        num_processes,
        (activations or 0) + graph_bytes,
        max_batch_size=settings.max_batch_size,
        gpu_fraction=placement_settings.cuda_memory_fraction,
        has_own_gpu=has_own_gpu,
    )
    tokens = least_over_ranks(tokens) if placement.is_tensor_parallel else tokens
    return KVCapacity(tokens, activations, graph_bytes, slots, snapshots, largest)


def _measure_largest_step(
    settings: EngineSettings, model: LoadedModel, placement: Placement
) -> tuple[int, int | None]:
    """Return the tokens of the largest step that fits the memory, and its activations' bytes.

    Raises ModelLoadError if even a small step does not fit.
    """
    tokens = batch_tokens(settings, model)
    least = max(LEAST_BATCH_TOKENS, _least_batch_tokens(settings, model))
    rows = settings.max_batch_size + MAX_PROMPT_LOGPROBS
    context = context_len(model.text_config)
    while True:
        try:
            return tokens, measure_activations(
                model, tokens, rows, settings.max_batch_size, context
            )
        except torch.OutOfMemoryError as error:
            # Other ranks would wait for this one within the step.
            if placement.is_tensor_parallel or tokens // 2 < least:
                raise ModelLoadError(
                    f"a step of {tokens} tokens does not fit the GPU's memory beside the weights; "
                    "lower MAX_BATCH_PREFILL_TOKENS or MAX_BATCH_SIZE, or use a larger GPU"
                ) from error
        log.warning(
            "memory plan: a step of %d tokens does not fit the GPU's memory; steps have at most %d "
            "(prompts take longer); a lower MAX_BATCH_PREFILL_TOKENS avoids this attempt",
            tokens, tokens // 2,
        )  # fmt: skip
        torch.cuda.empty_cache()
        tokens //= 2


def _graph_bytes(settings: EngineSettings, model: LoadedModel) -> int:
    """Return the memory of captured decodes: logits, their intermediates, and a margin."""
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
) -> tuple[int, int, int]:
    """Return the tokens that fit this rank; a recurrent model's state slots and snapshots.

    Under a device map the tokens are those of the fullest device.
    """
    per_device: dict[torch.device, int] = {}
    for layer in model.layers or []:
        device = layer.device or model.device
        per_device[device] = per_device.get(device, 0) + layer.numbers_per_token

    def usable_bytes(device: torch.device) -> int:
        free = free_bytes(device, gpu_fraction)
        if device.type == "cpu":
            return int(free * CACHE_FRACTION) // num_processes
        others = GPU_FRACTION if has_own_gpu else GPU_FRACTION_WITH_OTHERS
        return max(0, int(free * others) - activations - GPU_MARGIN)

    if model.kernels.chunks is not Kernel.PAGED and model.device.type == "cuda":
        # The keys and values of a layer are gathered before attention and repeated for the query
        # heads; a prefix that sequences share is gathered for each of them.
        for device in per_device:
            per_device[device] += 2 * max(layer.numbers_per_token for layer in model.layers or [])

    if not per_device:  # the model's own cache
        left = usable_bytes(model.device) - max_batch_size * model.bytes_per_sequence
        return max(0, left) // model.bytes_per_token, 0, 0
    slots, snapshots = _state_slots(model, usable_bytes(model.device), max_batch_size)
    for_states = state_bytes(model, slots + snapshots)
    return (
        min(
            max(0, usable_bytes(device) - for_states)
            // max(1, numbers * (model.cache_dtype or model.dtype).itemsize)
            for device, numbers in per_device.items()
        ),
        slots,
        snapshots,
    )


def _state_slots(model: LoadedModel, usable: int, max_batch_size: int) -> tuple[int, int]:
    """Return the state slots that fit, one for each sequence of a step, and the snapshots."""
    if model.mixers is None:
        return 0, 0
    fitting = int(usable * STATE_FRACTION) // model.bytes_per_sequence - 1
    running = max(1, min(max_batch_size, fitting))
    return running, max(0, min(SNAPSHOTS * running, fitting - running))


def state_bytes(model: LoadedModel, slots: int) -> int:
    """Return the bytes of a state cache, one row for padding among them."""
    return (slots + 1) * model.bytes_per_sequence if slots else 0


def is_only_model(embedding_model_id: str | None) -> bool:
    """Whether no other model is on the same GPU, by the settings and the environment."""
    return embedding_model_id is None and PARENT_PID not in os.environ


def batch_tokens(settings: EngineSettings, model: LoadedModel) -> int:
    """Return how many tokens a step may have.

    By default there is room beside all decodes for a segment of a recurrent model's prompt, or for
    an image whose tokens see each other.
    """
    default = max(_least_batch_tokens(settings, model), BATCH_TOKENS[model.device.type])
    return settings.max_batch_prefill_tokens or default


def _least_batch_tokens(settings: EngineSettings, model: LoadedModel) -> int:
    together = model.image_tokens if model.mixers is None else SEGMENT + 1
    return together + settings.max_batch_size if together else 0


def context_len(config: PretrainedConfig) -> int:
    """Return a model's longest sequence; UNSTATED_CONTEXT if its config has none of the names."""
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
    """Bytes of one rank; `activations` are those of the largest step, None where not measured.

    `graph_bytes` are those of CUDA graphs, `states` those of the state cache.
    """

    weights: int
    activations: int | None
    graph_bytes: int
    cache: int
    tokens: int
    states: int = 0
    state_slots: int = 0
    snapshots: int = 0

    def lines(self) -> list[str]:
        """Format the plan as a table for the log."""
        rows = [("weights", self.weights, "")]
        if self.activations is not None:
            rows.append(("activations", self.activations, "the largest step, measured"))
        if self.graph_bytes:
            rows.append(("CUDA graphs", self.graph_bytes, ""))
        fits = f"{self.tokens:,} tokens, or {self.tokens // LONG_SEQUENCE:,} sequences of "
        rows.append(("KV cache", self.cache, f"{fits}{LONG_SEQUENCE:,}"))
        if self.state_slots:
            slots = f"{self.state_slots:,} running sequences, {self.snapshots:,} snapshots"
            rows.append(("states", self.states, slots))
        return [
            f"{name:<12} {size / GIB:>8.2f} GiB  {comment}".rstrip() for name, size, comment in rows
        ]
