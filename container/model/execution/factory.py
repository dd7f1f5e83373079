"""Creates the runner of a loaded model, with its cache, and captures its decode graphs."""

from collections.abc import Callable

import torch

from container.engine.config import EngineConfig
from container.engine.model_runner import ModelRunner
from container.model.encoder_decoder.prompt_encoder import PromptEncoder
from container.model.execution.cuda_graphs import default_capture_sizes, graph_capturer
from container.model.execution.forward_pass import ForwardPass
from container.model.execution.hf_cache_runner import HFCacheRunner
from container.model.execution.model_runner import TorchModelRunner
from container.model.execution.vision_runner import VisionRunner
from container.model.forward_batch import MIN_ROWS, ForwardPlan
from container.model.kv_cache.cache import KVCache
from container.model.kv_cache.offload import HostCache
from container.model.loaded_model import LoadedModel
from container.model.lora.layers import LoraLayers
from container.model.parallel.tensor_parallel import is_tensor_parallel
from container.model.states.cache import StateCache
from container.model.vision.image_encoder import ImageEncoder


def capture_sizes(
    requested: tuple[int, ...] | None, model: LoadedModel, max_running: int
) -> list[int]:
    """Return the batch sizes (rows) of decodes to capture as CUDA graphs; none if unsupported.

    `requested` are numbers of sequences; None means `default_capture_sizes`. With several ranks
    graphs are captured only on request: a capture that fails on one rank blocks the other ranks.
    """
    if model.device.type != "cuda" or model.capture_obstacle:
        return []
    if requested is None:
        return [] if is_tensor_parallel(model.module) else default_capture_sizes(max_running)
    return sorted({max(MIN_ROWS, min(size, max_running)) for size in requested})


def capture_obstacle(requested: tuple[int, ...] | None, model: LoadedModel) -> str | None:
    """Return why a GPU gets no CUDA graphs, though none refused them; None where it may.

    None, too, for kinds of models that never have any. One that is not paged has none either,
    which its fallbacks say already.
    """
    never = model.layers is None or model.decoder is not None or bool(model.mixers)
    if model.device.type != "cuda" or requested == () or never:
        return None
    if model.capture_obstacle is None and requested is None and is_tensor_parallel(model.module):
        return "the model is sharded, and CUDA_GRAPHS is not set"
    return model.capture_obstacle


def capture_decodes(
    forward: ForwardPass,
    sizes: list[int],
    max_blocks: int,
    device: torch.device,
    progress: Callable[[str], None],
) -> str | None:
    """Capture decodes of these sizes; return why decodes run eagerly, if that failed.

    With several ranks all of them must call it.
    """
    if not sizes:
        return None
    with torch.cuda.device(device):
        return forward.capture(sizes, max_blocks, graph_capturer(), progress)


def make_runner(
    model: LoadedModel,
    config: EngineConfig,
    *,
    end_token_ids: frozenset[int],
    lora_layers: LoraLayers | None = None,
    broadcast: Callable[[ForwardPlan], None] | None = None,
    overlaps: bool = False,
) -> ModelRunner:
    """Create the runner of the engine's batches, with a cache of the engine's size.

    `broadcast` sends the plan of each pass to the other ranks. `overlaps`: a step begins before the
    previous one's output is read; not supported with the transformers cache.
    """
    if model.layers is None:
        runner_class = VisionRunner if model.is_multimodal else HFCacheRunner
        return runner_class(
            model.module, model.device, end_token_ids=end_token_ids,
            cpu_kernels=model.cpu_kernels, lora_layers=lora_layers,
        )  # fmt: skip
    forward = make_forward(
        model, config.num_blocks, config.block_size, lora_layers, num_slots=config.num_slots,
        num_state_slots=config.num_state_slots + config.num_snapshots,
    )  # fmt: skip
    return TorchModelRunner(
        forward, end_token_ids=end_token_ids, cpu_kernels=model.cpu_kernels,
        broadcast=broadcast, overlaps=overlaps, images=_image_encoder(model),
        encoder=None if model.decoder is None else PromptEncoder(model.module),
    )  # fmt: skip


def _image_encoder(model: LoadedModel) -> ImageEncoder | None:
    if model.language_model is None:
        return None
    return ImageEncoder(model.language_model, is_bidirectional=model.image_tokens > 0)


def make_forward(
    model: LoadedModel,
    num_blocks: int,
    block_size: int,
    lora_layers: LoraLayers | None = None,
    *,
    num_slots: int = 0,
    num_state_slots: int = 1,
) -> ForwardPass:
    """Create the forward pass of a paged model, with its KV cache and host memory slots.

    A recurrent model also gets a state cache.
    """
    assert model.layers is not None
    cache = KVCache(
        model.layers,
        num_blocks=num_blocks,
        block_size=block_size,
        dtype=model.cache_dtype or model.dtype,
        device=model.device,
    )
    return ForwardPass(
        model.module, cache, model.device, lora_layers=lora_layers, phase=model.phase,
        kernels=model.kernels, is_tensor_parallel=is_tensor_parallel(model.module),
        host=HostCache(cache, num_slots, model.device) if num_slots else None,
        states=None if model.mixers is None else StateCache(
            model.mixers.shapes, num_slots=num_state_slots, device=model.device
        ),
        mixers=model.mixers, language_model=model.language_model, decoder=model.decoder,
    )  # fmt: skip
