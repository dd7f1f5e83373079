"""Linear layers by the compiled kernels, with weights in their packed layout: see csrc/gemm.h.

A row's bits do not depend on the number of rows. Weights have the rows' dtype, or are int8 with a
scale for each output, or of four or eight bits in groups (quantized_weight.py). Weights of a
float32 model that bfloat16 holds exactly, as in most checkpoints, are stored in bfloat16: the
results are the same to the bit, and a decode, which mostly waits for weights, reads half of the
bytes.
"""

import ctypes

import torch
from torch import nn

from container.model.kernels.cpu import GemmArgs, Kernels, WeightArgs
from container.model.kernels.processor import has_amx
from container.model.layers.int8_linear import BatchPhase, Int8Linear, quantized
from container.model.layers.linear import FastLinear, PackedLinear, PlainLinear, can_pack
from container.model.layers.quantized_weight import (
    QuantizedWeight,
    can_quantize_to_int4,
    quantized_to_int4,
)

# Outputs that lie side by side, as in gemm.h.
GROUP = 48
# Most numbers of results that an output layer reuses: 64 MiB.
MAX_REUSED = 1 << 24
WEIGHT_FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
QUANTIZED_FORMATS = {4: 3, 8: 4}  # by bits


class CpuLinear(FastLinear):
    """A linear layer in the kernels' packed layout.

    With `fp32_out`, as for the output layer, results are float32, and the next call overwrites
    them. Only one thread at a time may call it, since it stores the arguments of a call.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        kernels: Kernels,
        *,
        int8_weights: bool = False,
        fp32_out: bool = False,
    ) -> None:
        super().__init__(weight, bias)
        self.out_features = weight.shape[0]
        self.kernels = kernels
        self._rows_dtype = weight.dtype
        self._dtype = torch.float32 if fp32_out else weight.dtype
        self._reused = torch.empty(0, self.out_features)
        self.scales: torch.Tensor | None = None
        self._group_of: torch.Tensor | None = None
        if isinstance(weight, QuantizedWeight):
            kind, groups = self._set_groups(weight), weight.scales.shape[1]
        else:
            kind, groups = self._set_numbers(weight.detach(), int8_weights=int8_weights), 1
        self.weight_args = WeightArgs(
            numbers=self.numbers.data_ptr(), scales=_address(self.scales),
            bias=_address(self.bias), block_of=_address(self._group_of), inputs=self.in_features,
            outputs=self.out_features, block=self.in_features // groups, blocks=groups, kind=kind,
            half_scales=self.scales is not None and self.scales.dtype == torch.float16,
        )  # fmt: skip
        self._args = GemmArgs(
            weight=ctypes.addressof(self.weight_args), bf16=weight.dtype == torch.bfloat16,
            fp32_out=fp32_out,
        )  # fmt: skip
        self._args_address = ctypes.addressof(self._args)

    def _set_numbers(self, numbers: torch.Tensor, *, int8_weights: bool) -> int:
        """Pack a plain weight, in fewer bits where that is asked for or exact; return its kind."""
        if int8_weights:
            numbers, scales = quantized(numbers)
            self.scales = nn.functional.pad(scales, (0, -len(scales) % GROUP))
        elif _fits_bfloat16(numbers):
            numbers = numbers.bfloat16()
        self.numbers = packed(numbers)
        return WEIGHT_FORMATS[numbers.dtype]

    def _set_groups(self, weight: QuantizedWeight) -> int:
        """Pack words of consecutive inputs, and scales beside offsets; return the kind."""
        self.numbers = packed(weight.numbers.view(torch.int32))
        scales, offsets = (packed(part).squeeze(-1) for part in (weight.scales, weight.offsets))
        self.scales = _in_half_if_exact(torch.stack([scales, offsets], 2))
        self._group_of = weight.group_of
        return QUANTIZED_FORMATS[weight.bits]

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply [..., in_features] to [..., out_features]. Raises RuntimeError for others."""
        if rows.dtype != self._rows_dtype or rows.shape[-1] != self.in_features:
            actual = f"{list(rows.shape)} of {rows.dtype}"
            raise RuntimeError(
                f"rows are {actual}, not [..., {self.in_features}] of {self._rows_dtype}"
            )
        flat = rows.contiguous()
        count = rows.numel() // self.in_features
        out = self._output(count)
        args = self._args
        args.x, args.out, args.rows = flat.data_ptr(), out.data_ptr(), count
        self.kernels.gemm(self._args_address)
        return out.view(*rows.shape[:-1], self.out_features)

    def _output(self, rows: int) -> torch.Tensor:
        """Return memory for results; an output layer reuses it, since new pages are slow."""
        if not self._args.fp32_out or rows * self.out_features > MAX_REUSED:
            return torch.empty(rows, self.out_features, dtype=self._dtype)
        if len(self._reused) < rows:
            self._reused = torch.empty(rows, self.out_features)
        return self._reused[:rows]


def packed(weight: torch.Tensor) -> torch.Tensor:
    """Reorder a weight, [out, in], to [groups, in / step, GROUP, step], as the kernels read it."""
    outputs, inputs = weight.shape
    step = 1 if weight.dtype.itemsize == 4 else 2
    full = outputs // GROUP * GROUP
    out = weight.new_zeros(-(-outputs // GROUP), inputs // step, GROUP, step)
    out[: full // GROUP] = weight[:full].view(-1, GROUP, inputs // step, step).transpose(1, 2)
    if full < outputs:
        last = weight[full:].view(outputs - full, inputs // step, step).transpose(0, 1)
        out[-1, :, : outputs - full] = last
    return out


def can_use_gemm(
    kernels: Kernels | None, weight: torch.Tensor, *, int8_weights: bool = False
) -> bool:
    """Whether to multiply with a weight, [out, in], by the kernels.

    Weights of bfloat16 are left to oneDNN where the processor has a matrix unit for them that the
    kernels do not use. PyTorch's GEMM of int8 weights has none, so those are not.
    """
    if kernels is None or weight.device.type != "cpu" or not kernels.supports_gemm:
        return False
    if weight.dtype not in (torch.float32, torch.bfloat16):
        return False
    if isinstance(weight, QuantizedWeight):
        return True
    left_to_onednn = weight.dtype == torch.bfloat16 and not int8_weights and has_amx()
    left_to_onednn = left_to_onednn and not kernels.has_tiles
    return weight.shape[1] % 2 == 0 and not left_to_onednn


def _in_half_if_exact(scales: torch.Tensor) -> torch.Tensor:
    """Return float32 scales in float16 if all of them are exact in it, such as those of Q4_1."""
    halves = scales.half()
    return halves if torch.equal(halves.float(), scales) else scales


def _fits_bfloat16(weight: torch.Tensor) -> bool:
    """Whether bfloat16 holds float32 numbers exactly: their lower bits are zero."""
    if weight.dtype != torch.float32:
        return False
    return not (weight.contiguous().view(torch.int32) & 0xFFFF).any()


class LinearFactory:
    """Makes the fastest linear layers for this processor, by the kernels or by PyTorch.

    `kernels` is None if none could be loaded.
    """

    def __init__(self, kernels: Kernels | None) -> None:
        self.kernels = kernels

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> FastLinear:
        """Make a layer from an unquantized weight, [out, in]."""
        return self._compiled(weight, bias) or _of_torch(weight, bias)

    def head(self, weight: torch.Tensor, bias: torch.Tensor | None) -> FastLinear:
        """Make an output layer, whose results the sampler reads in float32."""
        return self._compiled(weight, bias, fp32_out=True) or _of_torch(weight, bias)

    def int8(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        phase: BatchPhase | None,
        fp32_out: bool = False,
    ) -> FastLinear:
        """Make a layer with int8 weights; `phase` is for PyTorch's GEMMs."""
        layer = self._compiled(weight, bias, int8_weights=True, fp32_out=fp32_out)
        return layer or Int8Linear(weight, bias, phase)

    def int4(self, weight: torch.Tensor, bias: torch.Tensor | None) -> FastLinear:
        """Make a layer with int4 weights, where the inputs divide into groups."""
        if isinstance(weight, QuantizedWeight) or not can_quantize_to_int4(weight):
            return self.linear(weight, bias)
        return self.linear(quantized_to_int4(weight), bias)

    def packs(self, dtype: torch.dtype) -> bool:
        """Whether packed linear layers of this dtype work here; tries one."""
        if not (self.uses_kernels(dtype) or can_pack(dtype)):
            return False
        plain = nn.Linear(64, 48, dtype=dtype)
        rows = torch.randn(3, 64).to(dtype)
        try:
            packed = self.linear(plain.weight, plain.bias)(rows)
        except (RuntimeError, AttributeError):
            return False
        return torch.allclose(packed, plain(rows), atol=0.02, rtol=0.02)

    def uses_kernels(self, dtype: torch.dtype) -> bool:
        """Whether the kernels support weights of this dtype here."""
        return can_use_gemm(self.kernels, torch.empty(48, 64, dtype=dtype))

    def _compiled(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        int8_weights: bool = False,
        fp32_out: bool = False,
    ) -> CpuLinear | None:
        kernels = self.kernels
        if kernels is None or not can_use_gemm(kernels, weight, int8_weights=int8_weights):
            return None
        return CpuLinear(weight, bias, kernels, int8_weights=int8_weights, fp32_out=fp32_out)


def _of_torch(weight: torch.Tensor, bias: torch.Tensor | None) -> FastLinear:
    if isinstance(weight, QuantizedWeight):
        return PlainLinear(weight, bias)
    return PackedLinear(weight, bias) if can_pack(weight.dtype) else PlainLinear(weight, bias)


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
