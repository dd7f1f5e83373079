"""All decoder layers of a model in one call of the kernels, whose threads are woken once a step.

Between the layers nothing is Python's, so a step of few rows takes little more than reading the
weights. What is computed is what the layers compute one by one, bit by bit; they do it where the
kernels cannot: adapters, a cache of eight bits.
"""

import ctypes
import logging
from collections.abc import Callable, Sequence

import torch
from torch import nn

from container.model.attention import PagedStep
from container.model.fused_glue import FusedGlue, step_args
from container.model.glue import Angles
from container.model.kernels import LANES, DecoderArgs, DecoderLayerArgs, Kernels, find_kernels
from container.model.kv_cache import KVCache
from container.model.layers import LeanLayer
from container.model.products import KernelLinear
from container.model.reference_check import LayerTrial

log = logging.getLogger(__name__)


class DecoderStack(nn.Module):
    """Lean layers, each of which gets what the one before has made, and the same for all else.

    Only one thread at a time may call it.
    """

    def __init__(self, layers: Sequence[LeanLayer], kernels: Kernels) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        if hasattr(layers[0], "attention_type"):
            self.attention_type = layers[0].attention_type
        self._kernels = kernels
        facts = layers[0].facts
        self._dim = facts.dim
        self._is_bf16 = facts.norms[0][0].dtype == torch.bfloat16
        self._products = _products(layers[0])
        self._cache: KVCache | None = None
        self._args = DecoderArgs()
        self._scratch: tuple[torch.Tensor, ...] = ()

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: Angles,
        step: PagedStep,
        **_: object,
    ) -> torch.Tensor:
        """Compute [1, tokens, hidden] from the same."""
        kind = hidden_states.shape[1], self._dim, hidden_states.dtype
        fits = step_args(position_embeddings, step, self._kernels).kind == kind
        if fits and step.cache.dtype == hidden_states.dtype and not step.has_adapters:
            return self._in_one_call(hidden_states, position_embeddings, step)
        return self._one_by_one(hidden_states, position_embeddings, step)

    def _one_by_one(self, x: torch.Tensor, angles: Angles, step: PagedStep) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, position_embeddings=angles, step=step)
        return x

    def _in_one_call(self, x: torch.Tensor, angles: Angles, step: PagedStep) -> torch.Tensor:
        if step.cache is not self._cache:
            self._set_cache(step.cache)
        rows = x.shape[1]
        if not self._scratch or len(self._scratch[0]) < rows:
            self._set_scratch(rows, x.dtype)
        x = x.clone(memory_format=torch.contiguous_format)
        self._args.step, self._args.x = step_args(angles, step, self._kernels).address, x.data_ptr()
        self._kernels.decode(ctypes.addressof(self._args))
        return x

    def _set_cache(self, cache: KVCache) -> None:
        made = (DecoderLayerArgs * len(self.layers))()
        for place, layer in zip(made, self.layers, strict=True):
            assert isinstance(layer, LeanLayer)
            assert isinstance(layer.glue, FusedGlue)
            layer.glue.describe(place, cache)
            place.qkv, place.o, place.gate_up, place.down = (
                product.weight_args for product in _products(layer)
            )
        self._layers = made
        self._stages = self._kernels.stages(decoder_layers=len(made))
        self._args = DecoderArgs(
            layers=ctypes.addressof(made), stages=self._stages.address, num_layers=len(made),
            hidden=self._products[0].in_features, bf16=self._is_bf16,
        )  # fmt: skip
        self._cache, self._scratch = cache, ()

    def _set_scratch(self, rows: int, dtype: torch.dtype) -> None:
        """Memory for what lies between the products, kept for the next step."""
        qkv, o, gate_up, down = self._products
        widths = o.out_features, qkv.out_features, o.in_features, gate_up.out_features
        self._scratch = tuple(
            torch.zeros(rows, width, dtype=dtype) for width in (*widths, down.in_features)
        )
        addresses = [one.data_ptr() for one in self._scratch]
        args = self._args
        args.normed, args.qkv, args.seen, args.gate_up, args.gated = addresses


def _products(layer: LeanLayer) -> list[KernelLinear]:
    """Those for q, k and v; o; gate and up; down."""
    return [product for product in layer.products if isinstance(product, KernelLinear)]


@torch.inference_mode()
def stack_layers(model: nn.Module, run: Callable[[], object], trial: LayerTrial) -> None:
    """Stack a model's layers, in place, if the kernels can do all of every one.

    `run` calls the model; each layer must be given what the one before has made. The checked layers
    must stay as accurate, each as a stack of its own.
    """
    kernels = find_kernels()
    for name, child in list(model.named_modules()):
        layers = list(child) if isinstance(child, nn.ModuleList) else []
        lean = [layer for layer in layers if isinstance(layer, LeanLayer)]
        if kernels is None or not lean or len(lean) != len(layers):
            continue
        if _can_stack(lean) and _is_chain(lean, run) and _is_accurate(child, name, kernels, trial):
            model.set_submodule(name, nn.ModuleList([DecoderStack(lean, kernels)]))


def _is_accurate(layers: nn.ModuleList, name: str, kernels: Kernels, trial: LayerTrial) -> bool:
    for index, layer in enumerate(layers):
        if f"{name}.{index}" not in trial.checked:
            continue
        assert isinstance(layer, LeanLayer)
        layers[index] = DecoderStack([layer], kernels)
        accuracy = trial.measure([f"{name}.{index}"])
        layers[index] = layer
        if not accuracy.is_accepted:
            log.warning("layers run one by one: in one call they are off by %s", accuracy)
            return False
    return True


def _is_chain(layers: Sequence[LeanLayer], run: Callable[[], object]) -> bool:
    """Whether each layer is given what the one before has made, and all the same angles."""
    given: list[tuple[LeanLayer, object, object]] = []
    made: list[object] = []

    def before(layer: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        assert isinstance(layer, LeanLayer)
        x = args[0] if args else kwargs.get("hidden_states")
        given.append((layer, x, kwargs.get("position_embeddings")))

    def after(_: nn.Module, __: object, output: object) -> None:
        made.append(output)

    hooks = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    hooks += [layer.register_forward_hook(after) for layer in layers]
    run()
    for hook in hooks:
        hook.remove()
    for at, (layer, x, angles) in enumerate(given):
        place = at % len(layers)
        if layer is not layers[place] or angles is not given[at - place][2]:
            return False
        if place and x is not made[at - 1]:
            return False
    return bool(given) and len(given) % len(layers) == 0


def _can_stack(layers: Sequence[LeanLayer]) -> bool:
    """Whether the kernels can do all of every layer, and all are of one shape."""
    return all(map(_is_compiled, layers)) and len(set(map(_shape, layers))) == 1


def _is_compiled(layer: LeanLayer) -> bool:
    return (
        isinstance(layer.glue, FusedGlue)
        and layer.glue.is_silu
        and all(isinstance(product, KernelLinear) for product in layer.products)
        and layer.down.in_features % LANES == 0
    )


def _shape(layer: LeanLayer) -> tuple[object, ...]:
    facts = layer.facts
    products = [(one.in_features, one.out_features) for one in _products(layer)]
    dtype = facts.norms[0][0].dtype
    return facts.heads, facts.kv_heads, facts.dim, dtype, *products
