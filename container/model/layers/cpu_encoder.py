"""All encoder layers of a model in one call of the kernels, for texts without padding."""

import ctypes
from collections.abc import Sequence

import torch
from torch import nn

from container.model.attention.unpadded import Span
from container.model.kernels.cpu import LANES, MAX_DIM, EncoderArgs, EncoderLayerArgs, Kernels
from container.model.layers.cpu_linear import CpuLinear, can_use_gemm
from container.model.layers.encoder_layer import EncoderParts
from container.model.layers.linear import merged_linear


class EncoderStack(nn.Module):
    """Encoder layers of one shape, each of which reads the output of the one before it.

    Only one thread at a time may call it.
    """

    def __init__(self, layers: Sequence[EncoderParts], kernels: Kernels) -> None:
        super().__init__()
        self._kernels = kernels
        first = layers[0]
        self._bf16 = first.up.weight.dtype == torch.bfloat16
        self._hidden = first.up.in_features
        self._heads, self._dim = first.query.out_features // first.head_dim, first.head_dim
        self._widths = 3 * first.query.out_features, first.query.out_features, first.up.out_features
        # The structs point to these.
        self.linears = nn.ModuleList(
            merged_linear(list(linears), self._linear)
            for layer in layers
            for linears in (
                (layer.query, layer.key, layer.value),
                (layer.dense,),
                (layer.up,),
                (layer.down,),
            )
        )
        self.norms = nn.ModuleList(norm for layer in layers for norm in layer.norms)
        self._layers = (EncoderLayerArgs * len(layers))()
        for index, layer_args in enumerate(self._layers):
            self._describe(index, layer_args)
        self._phases = kernels.phases(encoder_layers=len(layers))
        self._scratch: tuple[torch.Tensor, ...] = ()

    def forward(
        self, hidden_states: torch.Tensor, *_: object, spans: list[Span], **__: object
    ) -> torch.Tensor:
        """Run all layers on [1, tokens, hidden]; returns the same shape."""
        x = hidden_states.clone(memory_format=torch.contiguous_format)
        rows = x.shape[1]
        if not self._scratch or len(self._scratch[0]) < rows:
            self._set_scratch(rows, x.dtype)
        starts = _starts(spans)
        qkv, attn_out, up = (tensor.data_ptr() for tensor in self._scratch)
        args = EncoderArgs(
            starts=starts.data_ptr(), layers=ctypes.addressof(self._layers),
            phases=self._phases.address, x=x.data_ptr(), qkv=qkv, attn_out=attn_out, up=up,
            num_texts=len(starts) - 1, num_layers=len(self._layers), hidden=self._hidden,
            heads=self._heads, dim=self._dim, scale=self._dim**-0.5, bf16=self._bf16,
        )  # fmt: skip
        self._kernels.encode(ctypes.addressof(args))
        return x

    def _linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> CpuLinear:
        return CpuLinear(weight, bias, self._kernels)

    def _describe(self, index: int, layer: EncoderLayerArgs) -> None:
        for at, name in enumerate(("qkv", "dense", "up", "down")):
            linear = self.linears[4 * index + at]
            assert isinstance(linear, CpuLinear)
            setattr(layer, name, linear.weight_args)
        for at in range(2):
            norm = self.norms[2 * index + at]
            assert isinstance(norm, nn.LayerNorm)
            layer.norms[at], layer.biases[at] = norm.weight.data_ptr(), norm.bias.data_ptr()
            layer.eps[at] = norm.eps

    def _set_scratch(self, rows: int, dtype: torch.dtype) -> None:
        """Allocate the tensors between the GEMMs; the next batches reuse them."""
        self._scratch = tuple(torch.zeros(rows, width, dtype=dtype) for width in self._widths)


def _starts(spans: list[Span]) -> torch.Tensor:
    """Return the first row of each text, and the end of the last: int64 [texts + 1]."""
    starts = [span.start + text * span.length for span in spans for text in range(span.texts)]
    return torch.tensor([*starts, spans[-1].start + spans[-1].texts * spans[-1].length])


def fits_cpu_encoder(kernels: Kernels | None, layers: Sequence[EncoderParts]) -> bool:
    """Whether the kernels support every layer, and all have one shape."""
    weights = [weight for layer in layers for weight in layer.weights]
    norms = [norm for layer in layers for norm in layer.norms]
    shapes = [(layer.head_dim, *(weight.shape for weight in layer.weights)) for layer in layers]
    return (
        all(can_use_gemm(kernels, weight) for weight in weights)
        and all(norm.weight.is_contiguous() and norm.bias is not None for norm in norms)
        and {weight.dtype for weight in weights} == {norm.weight.dtype for norm in norms}
        and len(set(shapes)) == len({weight.dtype for weight in weights}) == 1
        and layers[0].head_dim % LANES == 0
        and layers[0].head_dim <= MAX_DIM
        and layers[0].up.in_features % LANES == 0
    )
