"""Probes a model for the arguments of its attention, for its masks, and for what it caches."""

import dataclasses
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from container.model.attention.metadata import AttentionParams
from container.model.kv_cache.cache import LayerShape

NAME = "paged_probe"


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
    """Run the model once with an attention that only records its arguments.

    Sets the model's attention implementation, which the caller replaces.
    """
    shapes: dict[int, LayerShape] = {}
    layer_attn_params: dict[int, AttentionParams] = {}
    attentions: dict[int, str] = {}
    names = {id(part): name for name, part in module.named_modules()}
    masks = _Masks()

    def record(layer_module, query, key, value, mask, *_args, **kwargs):  # type: ignore[no-untyped-def]
        index = layer_module.layer_idx
        shape = LayerShape(key.shape[1], key.shape[-1], value.shape[-1], key.device)
        attn_params = AttentionParams.of(query, **kwargs)
        if attn_params.window is None and (chunk := masks.chunk_of(mask)) is not None:
            shape = dataclasses.replace(shape, chunk=chunk)
            attn_params = dataclasses.replace(attn_params, chunk=chunk)
        shapes[index], layer_attn_params[index] = shape, attn_params
        attentions[index] = names[id(layer_module)]
        out = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1])
        return out, None

    ALL_ATTENTION_FUNCTIONS.register(NAME, record)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, masks.create)
    module.set_attn_implementation(NAME)
    module(input_ids=ids, use_cache=False)
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


class _Masks:
    """The masks that a model creates, and the functions that say which tokens they show."""

    def __init__(self) -> None:
        # The masks are kept, so that no other tensor gets the id of one.
        self._created: dict[int, tuple[Any, Callable[..., Any], int | None]] = {}

    def create(
        self,
        *args: Any,
        mask_function: Callable[..., Any],
        local_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Implement transformers' mask interface."""
        kwargs["allow_is_causal_skip"] = False
        mask = sdpa_mask(*args, mask_function=mask_function, local_size=local_size, **kwargs)
        self._created[id(mask)] = mask, mask_function, local_size
        return mask

    def chunk_of(self, mask: object) -> int | None:
        """Return the size of the chunks that tokens with this mask attend within, if any."""
        _, function, size = self._created.get(id(mask), (None, None, None))
        if function is None or size is None:
            return None
        query = torch.tensor([[size - 1], [size], [size + 1], [2 * size - 1], [2 * size]])
        position = torch.arange(2 * size + 2)[None]
        first = torch.zeros(1, 1, dtype=torch.int64)
        is_visible = function(first, first, query, position)
        in_chunk = (position <= query) & (position >= query // size * size)
        return size if torch.equal(is_visible.expand_as(in_chunk), in_chunk) else None


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
