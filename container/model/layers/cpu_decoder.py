"""All decoder layers of a model in one call of the kernels, whose threads are woken once a step.

No Python runs between the layers, so a step of few rows takes little more than reading the weights.
The results are those of the layers one by one, bit for bit. Steps that the kernels do not support
(adapters, a cache of eight bits, images whose tokens see each other) run the layers one by one.
"""

import ctypes
from collections.abc import Collection, Sequence

import torch
from torch import nn

from container.model.attention.metadata import AttentionMetadata
from container.model.kernels.cpu import DecoderArgs, DecoderLayerArgs, Kernels
from container.model.kv_cache.cache import KVCache
from container.model.layers.cpu_layer_ops import CpuLayerOps, step_args
from container.model.layers.cpu_linear import CpuLinear
from container.model.layers.decoder_layer import FusedDecoderLayer
from container.model.layers.layer_ops import CosSin


class DecoderStack(nn.Module):
    """Fused decoder layers, each of which reads the output of the one before it.

    Only one thread at a time may call it.
    """

    def __init__(self, layers: Sequence[FusedDecoderLayer], kernels: Kernels) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._fused = tuple(layers)
        if hasattr(layers[0], "attention_type"):
            self.attention_type = layers[0].attention_type
        self._kernels = kernels
        spec = layers[0].spec
        self._dim = spec.dim
        self._is_bf16 = spec.norms[0][0].dtype == torch.bfloat16
        self._linears = cpu_linears(layers[0])
        self._cache: KVCache | None = None
        self._args = DecoderArgs()
        self._scratch: tuple[torch.Tensor, ...] = ()

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: CosSin,
        step: AttentionMetadata,
        **_: object,
    ) -> torch.Tensor:
        """Run all layers on [1, tokens, hidden]; returns the same shape."""
        layout = hidden_states.shape[1], self._dim, hidden_states.dtype
        fits = step_args(position_embeddings, step).layout == layout
        is_plain = step.cache.dtype == hidden_states.dtype and not step.has_adapters
        if fits and is_plain and not step.whole_chunks:
            return self._in_one_call(hidden_states, position_embeddings, step)
        return self._one_by_one(hidden_states, position_embeddings, step)

    def without(self, left_out: Collection[int]) -> "DecoderStack":
        """Return a stack of the same layers but those with these indexes."""
        layers = [layer for at, layer in enumerate(self._fused) if at not in left_out]
        return DecoderStack(layers, self._kernels)

    def _one_by_one(
        self, x: torch.Tensor, cos_sin: CosSin, step: AttentionMetadata
    ) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, position_embeddings=cos_sin, step=step)
        return x

    def _in_one_call(
        self, x: torch.Tensor, cos_sin: CosSin, step: AttentionMetadata
    ) -> torch.Tensor:
        if step.cache is not self._cache:
            self._set_cache(step.cache)
        rows = x.shape[1]
        if not self._scratch or len(self._scratch[0]) < rows:
            self._set_scratch(rows, x.dtype)
        x = x.clone(memory_format=torch.contiguous_format)
        self._args.step, self._args.x = step_args(cos_sin, step).address, x.data_ptr()
        self._kernels.decode(ctypes.addressof(self._args))
        return x

    def _set_cache(self, cache: KVCache) -> None:
        layer_args = (DecoderLayerArgs * len(self.layers))()
        for args, layer in zip(layer_args, self.layers, strict=True):
            assert isinstance(layer, FusedDecoderLayer)
            assert isinstance(layer.ops, CpuLayerOps)
            layer.ops.describe(args, cache)
            args.qkv, args.o, args.gate_up, args.down = (
                linear.weight_args for linear in cpu_linears(layer)
            )
        self._layers = layer_args
        self._phases = self._kernels.phases(decoder_layers=len(layer_args))
        self._args = DecoderArgs(
            layers=ctypes.addressof(layer_args),
            phases=self._phases.address,
            num_layers=len(layer_args),
            hidden=self._linears[0].in_features,
            bf16=self._is_bf16,
        )
        self._cache, self._scratch = cache, ()

    def _set_scratch(self, rows: int, dtype: torch.dtype) -> None:
        """Allocate the tensors between the GEMMs; the next steps reuse them."""
        qkv, o, gate_up, down = self._linears
        widths = o.out_features, qkv.out_features, o.in_features, gate_up.out_features
        self._scratch = tuple(
            torch.zeros(rows, width, dtype=dtype) for width in (*widths, down.in_features)
        )
        addresses = [tensor.data_ptr() for tensor in self._scratch]
        args = self._args
        args.normed, args.qkv, args.attn_out, args.gate_up, args.gated = addresses


def cpu_linears(layer: FusedDecoderLayer) -> list[CpuLinear]:
    """Return the linear layers for q, k and v; o; gate and up; down."""
    return [linear for linear in layer.linears if isinstance(linear, CpuLinear)]
