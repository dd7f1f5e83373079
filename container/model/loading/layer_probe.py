"""Probes a model for the arguments of its attention, and for what it caches."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from container.model.attention import paged
from container.model.attention.metadata import AttentionParams
from container.model.kv_cache.cache import LayerShape


class NotPageable(Exception):
    """The model's attention cannot be paged; the message is the reason."""


@dataclass(frozen=True, slots=True)
class ProbedLayers:
    """The arguments of each layer's attention; `attentions` are the names of its modules."""

    shapes: list[LayerShape]
    layer_attn_params: list[AttentionParams]
    attentions: list[str]
    variants: dict[str, Hashable]


def probe_layers(module: PreTrainedModel, ids: torch.Tensor) -> ProbedLayers:
    """Run the model once with an attention that only records its arguments."""
    shapes: dict[int, LayerShape] = {}
    layer_attn_params: dict[int, AttentionParams] = {}
    attentions: dict[int, str] = {}
    names = {id(part): name for name, part in module.named_modules()}

    def record(layer_module, query, key, value, *_args, **kwargs):  # type: ignore[no-untyped-def]
        index = layer_module.layer_idx
        shapes[index] = LayerShape(key.shape[1], key.shape[-1], value.shape[-1], key.device)
        layer_attn_params[index] = AttentionParams.of(query, **kwargs)
        attentions[index] = names[id(layer_module)]
        out = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1])
        return out, None

    ALL_ATTENTION_FUNCTIONS.register(paged.NAME, record)
    try:
        module(input_ids=ids, use_cache=False)
    finally:
        ALL_ATTENTION_FUNCTIONS.register(paged.NAME, paged.paged_attention)
    order = sorted(shapes)
    if order != list(range(module.config.num_hidden_layers)):
        raise NotPageable("its layers compute attention in their own way")
    layers = [_layer_of(module, attentions[index]) for index in order]
    variants: dict[str, Hashable] = {
        name: (_form(module.get_submodule(name)), layer_attn_params[index], shapes[index])
        for index, name in zip(order, layers, strict=True)
    }
    return ProbedLayers(
        [shapes[index] for index in order], [layer_attn_params[index] for index in order],
        [attentions[index] for index in order], variants,
    )  # fmt: skip


def cache_windows(cache: Any) -> list[int | None]:
    """Return each layer's attention window, by the model's own cache. Raises NotPageable."""
    layer_types = {type(layer) for layer in cache.layers}
    if layer_types - {DynamicLayer, DynamicSlidingWindowLayer}:
        names = sorted(layer_type.__name__ for layer_type in layer_types)
        raise NotPageable(f"it caches more than keys and values ({', '.join(names)})")
    return [getattr(layer, "sliding_window", None) for layer in cache.layers]


def _layer_of(module: PreTrainedModel, name: str) -> str:
    """Return the name of the decoder layer that contains a module: an element of a list."""
    while name:
        parent, _, last = name.rpartition(".")
        if last.isdecimal() and isinstance(module.get_submodule(parent), torch.nn.ModuleList):
            return name
        name = parent
    raise NotPageable("its decoder layers are not in a list")


def _form(layer: torch.nn.Module) -> Hashable:
    """Return a layer's class and sizes, which layers of one variant share."""
    sizes = tuple((name, tuple(part.shape)) for name, part in layer.named_parameters())
    return type(layer), sizes
