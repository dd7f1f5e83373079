"""A loaded and checked model, with the properties that the engine needs."""

from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PretrainedConfig, PreTrainedModel

from container.model.attention.varlen import REFERENCE_ONLY, AttentionKernels, Kernel
from container.model.checks.check_times import CheckTimes
from container.model.encoder_decoder.decoder import PagedDecoder
from container.model.hf_config import text_config
from container.model.kernels.cpu import Kernels
from container.model.kv_cache.cache import LayerShape
from container.model.layers.int8_linear import BatchPhase
from container.model.layers.quantized_weight import QuantizedWeight
from container.model.states.mixers import RecurrentMixers
from container.model.vision.language_model import LanguageModel

# Attention kernels for decodes that read no context lengths on the host.
CAPTURABLE = {Kernel.PAGED, Kernel.TRITON}


def uses_device_map(module: PreTrainedModel) -> bool:
    """Whether accelerate has placed its layers on several devices, or left some on disk."""
    devices = set((getattr(module, "hf_device_map", None) or {}).values())
    return len(devices) > 1 or "disk" in devices


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A checked model, with the properties that the engine needs.

    `layers` is None if it is served through the transformers cache. `is_multimodal`: it also takes
    images. `cache_dtype` is the paged cache's dtype, if not `dtype`. `kernels` compute attention
    over the paged cache. `mixers` are those of a recurrent model. `language_model` is that of a
    paged vision-language model; the tokens of its images see each other if `image_tokens`, their
    number in an image, is not 0. `decoder` is that of a paged encoder-decoder. `fallbacks` are the
    reasons why it is served more slowly than possible; `not_proved` are the parts that the checks
    left out because of their time limit; `times` are those of a paged model's checks.
    """

    module: PreTrainedModel
    config: PretrainedConfig
    dtype: torch.dtype
    device: torch.device
    layers: list[LayerShape] | None
    bytes_per_token: int
    bytes_per_sequence: int = 0
    cache_dtype: torch.dtype | None = None
    weight_bytes: int = 0
    phase: BatchPhase | None = None
    is_multimodal: bool = False
    kernels: AttentionKernels = REFERENCE_ONLY
    fallbacks: tuple[str, ...] = ()
    cpu_kernels: Kernels | None = None
    mixers: RecurrentMixers | None = None
    language_model: LanguageModel | None = None
    image_tokens: int = 0
    decoder: PagedDecoder | None = None
    not_proved: tuple[str, ...] = ()
    times: CheckTimes | None = None

    @property
    def capture_obstacle(self) -> str | None:
        """Why a decode step cannot be captured as a CUDA graph; None if it can."""
        if self.layers is None:
            return "its attention is not paged"
        if self.decoder is not None:
            return "its decoder reads the outputs of an encoder"
        if self.mixers:
            return "its recurrent states are read and written sequence by sequence"
        if uses_device_map(self.module):
            return "its layers are on several devices"
        if self.kernels.decodes not in CAPTURABLE:
            return (
                f"decodes attend with {self.kernels.decodes.value}, which reads lengths on the host"
            )
        return None

    @property
    def attention(self) -> Literal["paged", "own"]:
        """Attention over the paged cache, or with the model's own (transformers) cache."""
        return "own" if self.layers is None else "paged"

    @property
    def text_config(self) -> PretrainedConfig:
        """The configuration of its language model."""
        return text_config(self.config)

    @property
    def has_encoder(self) -> bool:
        """Whether an encoder reads the prompt, which yields no prompt log-probabilities."""
        return bool(self.config.is_encoder_decoder)


def parameter_bytes(module: torch.nn.Module) -> int:
    """Memory of a model's parameters in bytes, those offloaded to disk included."""
    return sum(map(_bytes, module.parameters()))


def stored_bytes(module: torch.nn.Module) -> int:
    """Memory of a model's weights in bytes, in the forms that they were converted to.

    Packed linear layers hold theirs as plain attributes.
    """
    tensors: list[torch.Tensor] = list(module.parameters())
    for part in module.modules():
        attributes = [value for value in vars(part).values() if isinstance(value, torch.Tensor)]
        tensors += [tensor for tensor in attributes if not tensor.is_meta]
    return sum({id(tensor): _bytes(tensor) for tensor in tensors}.values())


def _bytes(tensor: torch.Tensor) -> int:
    if isinstance(tensor, QuantizedWeight):
        return tensor.stored_bytes
    return tensor.numel() * tensor.element_size()
