"""All decoder layers of a model in one call of the kernels, whose threads are woken once a step.

Between the layers nothing is Python's, so a step of few rows takes little more than reading the
weights. What is computed is what the layers compute one by one, bit by bit; they do it where the
kernels cannot: adapters, a cache of eight bits.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import nn

from container.model.attention.metadata import PagedStep
from container.model.kernels.cpu import DecoderArgs, DecoderLayerArgs, Kernels
from container.model.kv_cache.cache import KVCache
from container.model.layers.cpu_layer_ops import FusedGlue, step_args
from container.model.layers.cpu_linear import KernelLinear
from container.model.layers.decoder_layer import LeanLayer
from container.model.layers.layer_ops import Angles


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
        self._products = cpu_products(layers[0])
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
                product.weight_args for product in cpu_products(layer)
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


def cpu_products(layer: LeanLayer) -> list[KernelLinear]:
    """Those for q, k and v; o; gate and up; down."""
    return [product for product in layer.products if isinstance(product, KernelLinear)]
