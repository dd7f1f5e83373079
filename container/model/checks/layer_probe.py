"""Probes a model for the arguments of its attention, for its masks, and for what it caches."""

import contextlib
import dataclasses
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer
from transformers.masking_utils import sdpa_mask

from container.model.attention import paged, traced
from container.model.attention.latent import blank_output, latents_of
from container.model.attention.metadata import AttentionParams
from container.model.attention.recorder import registered
from container.model.hf_config import text_config
from container.model.kv_cache.cache import NO_KEYS, LayerShape
from container.model.states.mixers import RecurrentMixers

NAME = "paged_probe"
# The arguments of a layer without attention.
NO_ATTENTION = AttentionParams(scale=1.0)
# Parts of names of attributes that number or name a layer, or that torch and the server set.
NOT_SWITCHES = ("idx", "index", "layer_id", "layer_num", "training", "qualified_name")
PLAIN_LAYERS = {DynamicLayer, DynamicSlidingWindowLayer}


class NotPageable(Exception):
    """The model's attention cannot be paged; the message is the reason."""


@dataclass(frozen=True, slots=True)
class ProbedLayers:
    """The arguments of each layer's attention, by the layer's index.

    A recurrent model's layers without attention have NO_KEYS and NO_ATTENTION. `points` are the
    names of modules in which tokens meet: attentions and mixers. `implementation` is the name of
    the attention implementation that pages the model.
    """

    shapes: list[LayerShape]
    layer_attn_params: list[AttentionParams]
    points: list[str]
    variants: dict[str, Hashable]
    implementation: str = paged.NAME

    def check_cache(self, cache: Any) -> None:
        """Compare with what the model's own cache has after a pass. Raises NotPageable."""
        for index, layer in enumerate(cache.layers):
            attends = self.shapes[index : index + 1] not in ([], [NO_KEYS])
            if getattr(layer, "keys", None) is not None and not attends:
                raise NotPageable("its layers compute attention in their own way")
            params = self.layer_attn_params[index] if attends else NO_ATTENTION
            window = getattr(layer, "sliding_window", None)
            if attends and window != (params.window or params.chunk):
                raise NotPageable("its own cache and its attention disagree about windows")


def set_attention(module: PreTrainedModel, name: str) -> None:
    """Set a model's attention implementation; its masks alone read it, if it computes attention."""
    if module._can_set_attn_implementation():
        module.set_attn_implementation(name)
    else:
        module.config._attn_implementation = name


def probe_layers(
    module: PreTrainedModel,
    ids: torch.Tensor,
    undo: contextlib.ExitStack,
    mixers: RecurrentMixers | None = None,
    text: PreTrainedModel | None = None,
) -> ProbedLayers:
    """Run the model once with an attention that only records its arguments.

    `text` is its language model, if it has another one inside.

    A model that does not call transformers' attention interface runs again with a cache that traces
    its attention, and keeps it; `undo` gets what removes it. Sets the model's attention
    implementation, which the caller replaces.
    """
    layers = _Layers(module, mixers)
    masks = _Masks()

    def record(layer_module, query, key, value, mask, *_args, **kwargs):  # type: ignore[no-untyped-def]
        if kwargs.get("indices") is not None:
            raise NotPageable("its attention reads a choice of its tokens")
        attn_params = AttentionParams.of(query, **kwargs)
        if attn_params.window is None:
            attn_params = dataclasses.replace(attn_params, chunk=masks.chunk_of(mask))
        layers.add(layer_module.layer_idx, key, value, attn_params, layer_module)
        return blank_output(layer_module, query, value), None

    text = module if text is None else text
    with registered(NAME, record, masks.create):
        set_attention(text, NAME)
        if text._can_set_attn_implementation():
            module(input_ids=ids, use_cache=False)
    if layers.shapes or mixers is not None:
        return layers.probed()
    if text is not module:
        raise NotPageable("its language model computes attention in its own way")
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
    """Collects facts about each layer of a model, by its index."""

    def __init__(self, module: PreTrainedModel, mixers: RecurrentMixers | None) -> None:
        self._mixers = mixers
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
        order, mixers = range(text_config(self._module.config).num_hidden_layers), self._mixers
        is_known = set(self.shapes) <= set(order)
        if not is_known or (mixers is None and len(self.shapes) < len(order)):
            raise NotPageable("its layers compute attention in their own way")
        points = [self._attentions[index] for index in sorted(self.shapes)]
        points += [call.name for call in mixers.calls] if mixers is not None else []
        attended = {_layer_of(self._module, name): at for at, name in self._attentions.items()}
        variants: dict[str, Hashable] = {}
        for name in _decoder_layers(self._module, points):
            at = attended.get(name, -1)
            form = _form(self._module.get_submodule(name))
            variants[name] = form, self._attn_params.get(at), self.shapes.get(at)
        return ProbedLayers(
            [self.shapes.get(index, NO_KEYS) for index in order],
            [self._attn_params.get(index, NO_ATTENTION) for index in order], points, variants,
        )  # fmt: skip


def check_cached_kinds(cache: Any, mixers: RecurrentMixers | None) -> None:
    """Check that a model caches keys, values and states only. Raises NotPageable."""
    if cache is None:
        raise NotPageable("it returns no cache of transformers'")
    layer_types = {
        type(layer)
        for index, layer in enumerate(cache.layers)
        if mixers is None or index not in mixers.layers
    }
    if mixers is not None:
        layer_types.discard(DummyLayer)
    if layer_types - PLAIN_LAYERS:
        names = sorted(layer_type.__name__ for layer_type in layer_types)
        raise NotPageable(f"it caches more than keys and values ({', '.join(names)})")


def _decoder_layers(module: PreTrainedModel, points: list[str]) -> list[str]:
    """Return the names of all layers in the lists that the points are in."""
    lists = dict.fromkeys(_layer_of(module, name).rpartition(".")[0] for name in points)
    return [
        f"{name}.{index}"
        for name in lists
        for index in range(len(list(module.get_submodule(name).children())))
    ]


class _Masks:
    """The masks that a model creates, and the functions that say which tokens they show."""

    def __init__(self) -> None:
        # Holds the masks, so that no other tensor gets the id of one.
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
    """Return a layer's classes, sizes and switches, which layers of one variant share."""
    sizes = tuple((name, tuple(part.shape)) for name, part in layer.named_parameters())
    parts = tuple((name, type(part), _switches(part)) for name, part in layer.named_modules())
    return sizes, parts


def _switches(part: torch.nn.Module) -> Hashable:
    """Return what may choose between ways to compute: words, and numbers that are 0 or 1.

    In some families a layer without RoPE differs from one with it in nothing else.
    """
    return tuple(
        (name, value)
        for name, value in vars(part).items()
        if isinstance(value, str | int)
        and (isinstance(value, str) or value in (0, 1))
        and not any(word in name for word in NOT_SWITCHES)
    )
