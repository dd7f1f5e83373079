"""Linear layers in faster forms: packed for oneDNN, or several merged into one.

* Packed layers keep their weights in oneDNN's own blocked format (1.3 to 2.5 times as fast as
  `F.linear` for few rows), and give the same bits for a row beside any other rows.
* Projections of the same input (q, k, v; gate, up) become one GEMM.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import nn

from container.model.layers.quantized_weight import QuantizedWeight

# oneDNN chooses its blocking for this many rows; measured best or equal from 1 to 512.
PACK_ROWS = 32


class FastLinear(nn.Module):
    """Replaces one linear layer of the model, or several with the same input.

    `parts` has names and output sizes of the replaced layers, for adapters.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.in_features = weight.shape[1]
        # Models ask their head's weight for its dtype; the numbers are in another layout.
        self.weight = torch.empty_like(weight, device="meta")
        self.bias = bias.detach() if bias is not None else None
        self.parts: list[tuple[str, int]] = []


# Makes a linear layer from a weight, [out, in], and a bias.
MakeLinear = Callable[[torch.Tensor, torch.Tensor | None], FastLinear]


class PackedLinear(FastLinear):
    """A linear layer with its weight in oneDNN's blocked format."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight, bias)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), PACK_ROWS)
        self._matmul = torch.ops.mkldnn._linear_pointwise

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply [..., in_features] to [..., out_features]."""
        out: torch.Tensor = self._matmul(rows, self.packed, self.bias, "none", [], "")
        return out


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of a format on this processor; bfloat16 needs AVX-512."""
    try:
        PackedLinear(torch.zeros(48, 64, dtype=dtype), None)
    except (RuntimeError, AttributeError):
        return False
    return True


class PlainLinear(FastLinear):
    """A linear layer as PyTorch's own, on any device."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight, bias)
        self.weight = (
            weight
            if isinstance(weight, QuantizedWeight)
            else nn.Parameter(weight.detach(), requires_grad=False)
        )

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply [..., in_features] to [..., out_features]."""
        return nn.functional.linear(rows, self.weight, self.bias)


class MergedLinear:
    """Several projections of one input as one GEMM; each projection takes its columns.

    The GEMM runs when a projection is called with another input than the last call's.
    """

    def __init__(self, linears: list[nn.Linear], make: MakeLinear) -> None:
        self.sizes = [linear.out_features for linear in linears]
        self.linear = merged_linear(linears, make)
        self._input: torch.Tensor | None = None
        self._outputs: tuple[torch.Tensor, ...] = ()

    def project(self, index: int, rows: torch.Tensor) -> torch.Tensor:
        """Return one projection of `rows`."""
        if rows is not self._input:
            self._outputs = self.linear(rows).split(self.sizes, -1)
            self._input = rows
        output = self._outputs[index]
        if index == len(self.sizes) - 1:
            self._input, self._outputs = None, ()
        return output


def merged_linear(linears: list[nn.Linear], make: MakeLinear) -> FastLinear:
    """Merge layers with the same input into one. Raises ValueError if only some have a bias."""
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    if biases and len(biases) < len(linears):
        raise ValueError("some of the layers have a bias and some have none")
    weights = [
        linear.weight if isinstance(linear.weight, QuantizedWeight) else linear.weight.detach()
        for linear in linears
    ]
    weight = torch.cat(weights) if len(weights) > 1 else weights[0]
    merged = make(weight, torch.cat(biases) if biases else None)
    merged.parts = [
        (str(getattr(source, "qualified_name", "")), source.out_features) for source in linears
    ]
    return merged


class MergedLinearView(nn.Module):
    """Replaces one of the merged projections."""

    def __init__(self, merged: MergedLinear, index: int) -> None:
        super().__init__()
        self._merged = merged
        self._index = index

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply [..., in_features] to this projection's [..., out_features]."""
        return self._merged.project(self._index, rows)
