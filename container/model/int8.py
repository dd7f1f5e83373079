"""Eight-bit weights: each output of a linear layer has a scale and whole numbers from -127 to 127.

Weights only: inputs and sums stay as they are. Where the kernels can, they multiply (products.py);
elsewhere torch does, as here. For few rows torch multiplies with the numbers as
they lie in memory, half as many bytes as bfloat16's; that product is slow for many rows, so prompts
get the numbers converted first. Which of the two a row gets depends on what it is, a decode or a
token of a prompt, never on the other rows: so seeds repeat under any load.
"""

from dataclasses import dataclass

import torch
from torch import nn

from container.model.packing import FastLinear


def quantized(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers [out, in] and scales [out], float32 but sayable in the weight's format."""
    largest = weight.abs().amax(1).clamp_(min=1e-8)
    scales = (largest / 127).float()
    exact = weight.float() / scales[:, None]
    return exact.round_().clamp_(-127, 127).to(torch.int8), scales


@dataclass(slots=True)
class RowKinds:
    """How many rows of the forward pass, from the first on, are decodes; set by the runner."""

    num_decodes: int = 0


class Int8Linear(FastLinear):
    """A linear layer with whole numbers for weights. Without `kinds`, all rows are as decodes."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, kinds: RowKinds | None
    ) -> None:
        super().__init__(weight, bias)
        self.numbers, scales = quantized(weight.detach())
        self.scales = scales.to(weight.dtype)
        self._kinds = kinds

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply [..., in_features] to [..., out_features]."""
        flat = rows.reshape(-1, rows.shape[-1])
        decodes = len(flat) if self._kinds is None else self._kinds.num_decodes
        if decodes >= len(flat):
            out = self._few(flat)
        elif decodes == 0:
            out = self._many(flat)
        else:
            out = torch.cat([self._few(flat[:decodes]), self._many(flat[decodes:])])
        if self.bias is not None:
            out += self.bias
        return out.view(*rows.shape[:-1], -1)

    def _few(self, rows: torch.Tensor) -> torch.Tensor:
        return torch._weight_int8pack_mm(rows.contiguous(), self.numbers, self.scales)

    def _many(self, rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(rows, self.numbers.to(rows.dtype)).mul_(self.scales)
