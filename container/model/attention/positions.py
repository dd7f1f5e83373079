"""Checks that queries and keys of a paged model belong to its tokens' positions.

Paged attention gives a model the positions of a step's tokens, and no cache. Some layers count the
tokens in the cache instead (Llama 4 scales its queries so), often from thousands of tokens on,
which the other checks do not reach. So the queries at a late position are compared here.
"""

import contextlib
import logging
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from container.errors import one_line
from container.model.attention.latent import blank_output
from container.model.attention.recorder import registered
from container.model.attention.traced import NotTraceable
from container.model.hf_config import text_config

log = logging.getLogger(__name__)

NAME = "paged_positions"
# Only rounding differs, in 16 bits too.
TOLERANCE = 0.01
# Where a configuration does not say how many positions there are.
UNSTATED_POSITIONS = 2048


class _CachedTokens(DynamicCache):
    """An empty cache that says that it holds `count` tokens."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._count

    def update(
        self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        return key_states, value_states


class _RowPositions:
    """Stands in for a layer's cache: the tokens before a row are as many as its position says."""

    def __init__(self, positions: torch.Tensor) -> None:
        self._positions = positions.flatten()

    def get_seq_length(self, layer_idx: int = 0) -> torch.Tensor:
        """Return what makes positions of the rows' indexes: [tokens]."""
        rows = torch.arange(len(self._positions), device=self._positions.device)
        return self._positions - rows

    def update(self, keys: Any, values: Any, *_: object, **__: object) -> tuple[Any, Any]:
        """Return keys and values unchanged."""
        return keys, values


def follow_positions(
    module: PreTrainedModel,
    text: PreTrainedModel,
    ids: list[int],
    layers: list[str],
    undo: contextlib.ExitStack,
) -> str | None:
    """Make `layers` use the positions of a step's tokens where they would count those of a cache.

    Sets the attention implementation of `text`, the model or its language model, which the caller
    replaces; `undo` gets what restores the layers. Returns why the model's own queries could not be
    computed, if so. Raises NotTraceable if the layers' queries still differ from these.
    """
    start = _late_position(module)
    rows = torch.tensor([ids[:2]], device=module.device)
    positions = torch.arange(start, start + rows.shape[1], device=module.device)[None]
    arguments = {"input_ids": rows, "position_ids": positions, "use_cache": False}
    try:
        expected = _states(module, text, **arguments, past_key_values=_CachedTokens(start))
    except Exception as error:  # a model may want more of its cache
        return one_line(error)
    if are_near(_states(module, text, **arguments, step=None), expected):
        return None
    for name in layers:
        layer = module.get_submodule(name)
        undo.callback(layer.register_forward_pre_hook(_give_positions, with_kwargs=True).remove)
    if not are_near(_states(module, text, **arguments, step=None), expected):
        raise NotTraceable("its attention has positions of its own")
    log.debug("layers get the positions of a step's tokens in the place of a cache")
    return None


def _late_position(module: PreTrainedModel) -> int:
    positions = getattr(text_config(module.config), "max_position_embeddings", None)
    return int(positions or UNSTATED_POSITIONS) - 2


def _states(module: PreTrainedModel, text: PreTrainedModel, **arguments: Any) -> list[torch.Tensor]:
    """Run the model, and return the queries and keys of all layers."""
    states: list[torch.Tensor] = []

    def record(part, query, key, value, *_args, **_kwargs):  # type: ignore[no-untyped-def]
        states.extend((query, key))
        return blank_output(part, query, value), None

    with registered(NAME, record):
        text.set_attn_implementation(NAME)
        module(**arguments)
    return states


def are_near(states: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    """Whether queries and keys differ from those that are expected in rounding only."""
    return len(states) == len(expected) and all(
        (one - other).abs().max() <= TOLERANCE * other.abs().max()
        for one, other in zip(states, expected, strict=True)
    )


def _give_positions(
    _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if "step" not in kwargs or kwargs.get("position_ids") is None:
        return None
    return args, kwargs | {"past_key_values": _RowPositions(kwargs["position_ids"])}
