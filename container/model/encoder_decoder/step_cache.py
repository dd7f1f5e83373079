"""Stand-ins for the cache that an encoder-decoder's decoder asks for its keys and positions."""

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from container.model.kv_cache.cache import LayerShape


class _CountingCache(DynamicCache):
    """A cache without content that says that it holds `count` tokens.

    Its updates return as many keys and values as `num_keys` says, or the new ones alone.
    """

    def __init__(self, count: int = 0, num_keys: int | None = None) -> None:
        super().__init__()
        self._count = count
        self._num_keys = num_keys

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._count

    def update(
        self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        if self._num_keys is None:
            return key_states, value_states
        last = (slice(None), slice(None), slice(-1, None))
        return tuple(
            states[last].expand(-1, -1, self._num_keys, -1) for states in (key_states, value_states)
        )


class _BlankLayer:
    """Keys and values of a layer's cross-attention, whose numbers nothing reads."""

    def __init__(self, shape: LayerShape, dtype: torch.dtype, device: torch.device) -> None:
        self.keys = torch.zeros(1, shape.kv_heads, 1, shape.key_dim, dtype=dtype, device=device)
        self.values = torch.zeros(1, shape.kv_heads, 1, shape.value_dim, dtype=dtype, device=device)


class StepCache(EncoderDecoderCache):
    """Stands in for a decoder's cache.

    The decoder computes keys and values of the encoder's outputs, unless there are `blank` layers,
    which it then takes for cached ones.
    """

    def __init__(
        self,
        *,
        count: int = 0,
        num_keys: int | None = None,
        blank: list[_BlankLayer] | None = None,
    ) -> None:
        super().__init__(_CountingCache(count, num_keys), _CountingCache())
        if blank is not None:
            self.cross_attention_cache.layers = blank  # type: ignore[assignment]
            self.is_updated = dict.fromkeys(range(len(blank)), True)


def blank_layers(
    shapes: list[LayerShape], dtype: torch.dtype, device: torch.device
) -> list[_BlankLayer]:
    """Create a blank layer for each layer of the decoder."""
    return [_BlankLayer(shape, dtype, device) for shape in shapes]
