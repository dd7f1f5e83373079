"""Probes a model for the arguments of its attention, for its masks, and for what it caches."""

import contextlib
import dataclasses
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from container.model.attention import paged, traced
from container.model.attention.latent import blank_output, latents_of
from container.model.attention.metadata import AttentionParams
from container.model.kv_cache.cache import LayerShape

NAME = "paged_probe"


class NotPageable(Exception):
    """The model's attention cannot be paged; the message is the reason."""


@dataclass(frozen=True, slots=True)
class ProbedLayers:
    """The arguments of each layer's attention; `attentions` are the names of its modules.

    `implementation` is the name of the attention implementation that pages the model.
    """

    shapes: list[LayerShape]
    layer_attn_params: list[AttentionParams]
    attentions: list[str]
    variants: dict[str, Hashable]
    implementation: str = paged.NAME


def set_attention(module: PreTrainedModel, name: str) -> None:
    """Set a model's attention implementation; its masks alone read it, if it computes attention."""
    if module._can_set_attn_implementation():
        module.set_attn_implementation(name)
    else:
        module.config._attn_implementation = name


def probe_layers(
    module: PreTrainedModel, ids: torch.Tensor, undo: contextlib.ExitStack
) -> ProbedLayers:
    """Run the model once with an attention that only records its arguments.

    A model that does not call transformers' attention interface runs again with a cache that traces
    its attention, and keeps it; `undo` gets what removes it. Sets the model's attention
    implementation, which the caller replaces.
    """
    layers = _Layers(module)
    masks = _Masks()

    def record(layer_module, query, key, value, mask, *_args, **kwargs):  # type: ignore[no-untyped-def]
        if kwargs.get("indices") is not None:
            raise NotPageable("its attention reads a choice of its tokens")
        attn_params = AttentionParams.of(query, **kwargs)
        if attn_params.window is None:
            attn_params = dataclasses.replace(attn_params, chunk=masks.chunk_of(mask))
        layers.add(layer_module.layer_idx, key, value, attn_params, layer_module)
        return blank_output(layer_module, query, value), None

    ALL_ATTENTION_FUNCTIONS.register(NAME, record)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, masks.create)
    set_attention(module, NAME)
    if module._can_set_attn_implementation():
        module(input_ids=ids, use_cache=False)
    if layers.shapes:
        return layers.probed()
    _trace_layers(module, ids, layers)
    undo.callback(traced.attach(module))
    return dataclasses.replace(layers.probed(), implementation=traced.NAME)


def _trace_layers(module: PreTrainedModel, ids: torch.Tensor, layers: "_Layers") -> None:
    """Run the model with a cache that records its attention. Raises NotTraceable and others."""
    attentions = {part.layer_idx: part for part in module.modules() if hasattr(part, "layer_idx")}

    def record(index, query, keys, values, attn_params):  # type: ignore[no-untyped-def]
        keys_, values_ = (part.transpose(0, 1)[None] for part in (keys, values))
        layers.add(index, keys_, values_, attn_params, attentions[index])
        return query.new_zeros(*query.shape[:2], values.shape[-1])

    set_attention(module, traced.NAME)
    num_rows = ids.shape[1]
    cache = traced.TracedCache(record, num_rows, num_rows)
    module(input_ids=ids, past_key_values=cache, use_cache=False)


class _Layers:
    """What is known of each layer of a model, by its index."""

    def __init__(self, module: PreTrainedModel) -> None:
        self.shapes: dict[int, LayerShape] = {}
        self._module = module
        self._attn_params: dict[int, AttentionParams] = {}
        self._attentions: dict[int, str] = {}
        self._names = {id(part): name for name, part in module.named_modules()}

    def add(
        self,
        index: int,
        keys: torch.Tensor,
        values: torch.Tensor,
        attn_params: AttentionParams,
        attention: torch.nn.Module,
    ) -> None:
        """Add a layer; keys and values are [1, kv_heads, tokens, dim]."""
        self.shapes[index] = LayerShape(
            keys.shape[1], keys.shape[-1], values.shape[-1], keys.device, attn_params.chunk,
            is_latent=latents_of(attention) is not None,
        )  # fmt: skip
        self._attn_params[index] = attn_params
        self._attentions[index] = self._names[id(attention)]

    def probed(self) -> ProbedLayers:
        """Return all layers in order. Raises NotPageable if some are missing."""
        order = sorted(self.shapes)
        if order != list(range(self._module.config.num_hidden_layers)):
            raise NotPageable("its layers compute attention in their own way")
        shapes = [self.shapes[index] for index in order]
        params = [self._attn_params[index] for index in order]
        attentions = [self._attentions[index] for index in order]
        variants: dict[str, Hashable] = {}
        for shape, attn_params, attention in zip(shapes, params, attentions, strict=True):
            name = _layer_of(self._module, attention)
            variants[name] = _form(self._module.get_submodule(name)), attn_params, shape
        return ProbedLayers(shapes, params, attentions, variants)


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
        *,
        mask_function: Callable[..., Any],
        local_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Implement transformers' mask interface, whose callers name all arguments."""
        arguments = kwargs | {"mask_function": mask_function, "local_size": local_size}
        mask = sdpa_mask(**arguments | {"allow_is_causal_skip": False})
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
