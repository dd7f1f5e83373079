"""Probes a model for its mixers: the modules that read and update states in transformers' cache."""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from container.model.checks.layer_probe import NotPageable
from container.model.checks.own_pass import CACHE_NAMES
from container.model.states.cache import StateKind, StateShape
from container.model.states.mixers import MixerCall, RecurrentMixers


@torch.inference_mode()
def probe_mixers(module: PreTrainedModel, ids: torch.Tensor) -> RecurrentMixers | None:
    """Run a model once with a cache that records who uses its states; None without states.

    `ids` is [1, tokens]. Raises NotPageable if a mixer cannot be called piece by piece.
    """
    cache = _recording_cache(module)
    if cache is None:
        return None
    name = next(iter(n for n in CACHE_NAMES if n in inspect.signature(module.forward).parameters))
    with _calls_recorded(module, cache):
        module(input_ids=ids, use_cache=True, **{name: cache})
    if not cache.calls:
        return None
    return RecurrentMixers(list(cache.calls.values()), _shapes(cache))


class _RecordingCache(DynamicCache):
    """A cache that notes the innermost running module at each use of a state."""

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.running: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.calls: dict[str, MixerCall] = {}

    def get_conv_state(self, *args: Any, **kwargs: Any) -> Any:
        self._record()
        return super().get_conv_state(*args, **kwargs)

    def get_recurrent_state(self, *args: Any, **kwargs: Any) -> Any:
        self._record()
        return super().get_recurrent_state(*args, **kwargs)

    def update_conv_state(self, *args: Any, **kwargs: Any) -> Any:
        self._record()
        return super().update_conv_state(*args, **kwargs)

    def update_recurrent_state(self, *args: Any, **kwargs: Any) -> Any:
        self._record()
        return super().update_recurrent_state(*args, **kwargs)

    def _record(self) -> None:
        name, args, kwargs = self.running[-1]
        if name not in self.calls:
            self.calls[name] = _call_of(name, args, kwargs, self)


def _call_of(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], cache: DynamicCache
) -> MixerCall:
    """Find the hidden states and the cache among a mixer's arguments."""
    arguments: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    hidden = [
        key for key, value in arguments if isinstance(value, torch.Tensor) and value.dim() == 3
    ]
    caches = [key for key, value in arguments if value is cache]
    if len(hidden) != 1 or len(caches) != 1:
        raise NotPageable(f"its layer {name} takes more than hidden states and a cache")
    return MixerCall(name, hidden[0], caches[0])


def _recording_cache(module: PreTrainedModel) -> _RecordingCache | None:
    """Return a cache for the model if its configuration has layers with states."""
    parameters = inspect.signature(module.forward).parameters
    if not any(name in parameters for name in CACHE_NAMES):
        return None
    try:
        cache = _RecordingCache(module.config)
    except Exception:  # each configuration can lack something else
        return None
    has_states = any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)
    return cache if has_states else None


@contextmanager
def _calls_recorded(module: nn.Module, cache: _RecordingCache) -> Iterator[None]:
    """Keep the stack of running modules in `cache.running`."""
    with ExitStack() as stack:
        for name, part in module.named_modules():

            def enter(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                cache.running.append((name, args, kwargs))

            def leave(*_: object) -> None:
                cache.running.pop()

            stack.callback(part.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(part.register_forward_hook(leave).remove)
        yield


def _shapes(cache: DynamicCache) -> list[StateShape]:
    """Return the shapes of all states that the model has used."""
    shapes = []
    for index, layer in enumerate(cache.layers):
        if not isinstance(layer, LinearAttentionCacheLayerMixin):
            continue
        for kind, states in (
            (StateKind.CONV, layer.conv_states),
            (StateKind.RECURRENT, layer.recurrent_states),
        ):
            shapes += [
                StateShape((kind, index, number), tuple(state.shape[1:]), state.dtype)
                for number, state in states.items()
                if state is not None
            ]
    return shapes
