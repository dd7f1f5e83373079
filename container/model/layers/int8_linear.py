"""Weight-only int8 quantization: each output has a scale and integers from -127 to 127.

Inputs and sums keep their dtype. The CPU kernels multiply where they support it (cpu_linear.py);
elsewhere PyTorch does, as here. For few rows PyTorch reads the integers directly, half as many
bytes as bfloat16's; for many rows that GEMM is slow, so the weights are converted first for
prompts. Which GEMM a row gets depends on whether it is a decode or a prompt's token, never on the
other rows, so seeds repeat under any load.
"""

from dataclasses import dataclass

import torch
from torch import nn

from container.model.layers.linear import FastLinear
from container.model.layers.quantized_weight import ROWS_AT_ONCE


def quantized(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return integers, int8 [out, in], and scales, float32 [out].

    In 16 bits a scale would be rounded, and with it a row's largest weight, which in trained models
    may be the one that meets the largest input.
    """
    numbers = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    for at in range(0, len(weight), ROWS_AT_ONCE):
        rows = weight[at : at + ROWS_AT_ONCE].float()
        steps = rows.abs().amax(1).clamp_(min=1e-8) / 127
        scales[at : at + ROWS_AT_ONCE] = steps
        numbers[at : at + ROWS_AT_ONCE] = (rows / steps[:, None]).round_().clamp_(-127, 127)
    return numbers, scales


@dataclass(slots=True)
class BatchPhase:
    """How many rows of the forward pass, from the first on, are decodes; set by the runner."""

    num_decodes: int = 0
    _num_decodes_of_pass: int | None = None

    def narrow(self, rows: slice | torch.Tensor, *, is_decode: bool) -> None:
        """Restrict the pass to these rows, which are all decodes or none."""
        if self._num_decodes_of_pass is None:
            self._num_decodes_of_pass = self.num_decodes
        count = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        self.num_decodes = count if is_decode else 0

    def widen(self) -> None:
        """Lift the restriction."""
        if self._num_decodes_of_pass is not None:
            self.num_decodes, self._num_decodes_of_pass = self._num_decodes_of_pass, None


class Int8Linear(FastLinear):
    """A linear layer with int8 weights. Without `phase`, all rows count as decodes."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, phase: BatchPhase | None
    ) -> None:
        super().__init__(weight, bias)
        self.numbers, self.scales = quantized(weight.detach())
        self._ones = torch.ones_like(self.scales, dtype=weight.dtype)
        self._phase = phase

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply [..., in_features] to [..., out_features]."""
        flat = rows.reshape(-1, rows.shape[-1])
        decodes = len(flat) if self._phase is None else self._phase.num_decodes
        if decodes >= len(flat):
            out = self._few(flat)
        elif decodes == 0:
            out = self._many(flat)
        else:
            out = torch.cat([self._few(flat[:decodes]), self._many(flat[decodes:])])
        out = out.mul_(self.scales)  # in float32, for any dtype of the GEMM
        if self.bias is not None:
            out += self.bias
        return out.view(*rows.shape[:-1], -1)

    def _few(self, rows: torch.Tensor) -> torch.Tensor:
        return torch._weight_int8pack_mm(rows.contiguous(), self.numbers, self._ones)

    def _many(self, rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(rows, self.numbers.to(rows.dtype))
