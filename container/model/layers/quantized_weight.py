"""Weights of four or eight bits in groups of inputs, as a tensor that computes when it is used.

    weight[o, i] = numbers[o, i] * scales[o, g] + offsets[o, g]         g: the group of input i

Q4_0, Q4_1, Q4_K, Q8_0, AWQ, GPTQ and compressed-tensors' W4A16 all have this form exactly. Any
operation on a `QuantizedWeight` computes the weights first; three do without, so that a model of
such weights is loaded, merged and checked as any other: `detach`, `cat` of outputs, and embedding,
which computes the rows that it looks up.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

# Inputs of a group that this server quantizes itself.
GROUP_SIZE = 32
# Outputs that are quantized at once: the numbers between stay in the processor's caches.
ROWS_AT_ONCE = 64
# Candidates for a group's scale when quantizing, as fractions of the range of its weights.
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)
# A scale for groups of equal weights, which are all the offset.
SMALLEST = 1e-20
# Groups whose scales and offsets may be rounded to float16: their weights are at most so many half
# ranges from zero, and half a range is at least so much, which makes steps of 2^-14 or more.
FARTHEST = 16
LEAST_HALF_RANGE = 2.0**-14 * 15 / 2 / min(SHRINKS)


class QuantizedWeight(torch.Tensor):
    """A weight [out, in] of unsigned numbers with a scale and an offset for each group of inputs.

    `numbers` are uint8, [out, in] or, of four bits, [out, in / 2] with the first input in the low
    bits. `scales` and `offsets` are float32, [out, groups]. Groups are consecutive inputs, or those
    of `group_of`, int32 [in]. The tensor's own dtype is that of what it computes.
    """

    numbers: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor
    bits: int
    group_of: torch.Tensor | None

    @staticmethod
    def __new__(
        cls, numbers: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor, *, bits: int,
        dtype: torch.dtype, group_of: torch.Tensor | None = None,
    ) -> "QuantizedWeight":  # fmt: skip
        """Raises ValueError for sizes that do not belong together."""
        outputs, inputs = numbers.shape[0], numbers.shape[1] * 8 // bits
        groups = scales.shape[1]
        is_even = group_of is not None or (inputs % groups == 0 and inputs // groups % 8 == 0)
        if scales.shape != offsets.shape or scales.shape[0] != outputs or not is_even:
            raise ValueError(
                f"weights of {outputs} outputs and {inputs} inputs have scales "
                f"{list(scales.shape)} and offsets {list(offsets.shape)}"
            )
        weight = torch.Tensor._make_wrapper_subclass(cls, (outputs, inputs), dtype=dtype)
        weight.numbers = numbers.contiguous()
        weight.scales, weight.offsets = scales.contiguous(), offsets.contiguous()
        weight.bits, weight.group_of = bits, group_of
        return weight

    @property
    def group_size(self) -> int:
        """Inputs that share a scale, where groups are consecutive."""
        return self.shape[1] // self.scales.shape[1]

    @property
    def stored_bytes(self) -> int:
        """Memory of numbers, scales and offsets."""
        return sum(part.nbytes for part in (self.numbers, self.scales, self.offsets))

    def values(self) -> torch.Tensor:
        """Return the numbers one by one, uint8 [out, in]."""
        if self.bits == 8:
            return self.numbers
        both = torch.stack([self.numbers & 15, self.numbers >> 4], -1)
        return both.flatten(1)

    def dequantized(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Compute the weights in float32, rounded to `dtype`, by default the tensor's own."""
        numbers = self.values().float()
        if self.group_of is not None:
            group = self.group_of.long()
            exact = numbers * self.scales[:, group] + self.offsets[:, group]
        else:
            grouped = numbers.unflatten(1, (self.scales.shape[1], -1))
            exact = grouped.mul_(self.scales[..., None]).add_(self.offsets[..., None]).flatten(1)
        return exact.to(dtype or self.dtype)

    def rows(self, index: torch.Tensor) -> "QuantizedWeight":
        """Select outputs, int64 [count]."""
        return self._like(self.numbers[index], self.scales[index], self.offsets[index])

    def with_eight_bits(self) -> "QuantizedWeight":
        """Return the same weights with numbers of eight bits."""
        if self.bits == 8:
            return self
        return QuantizedWeight(
            self.values(), self.scales, self.offsets, bits=8, dtype=self.dtype,
            group_of=self.group_of,
        )  # fmt: skip

    def _in_groups_of(self, size: int) -> "QuantizedWeight":
        """Return the same weights in smaller groups."""
        if self.group_size == size:
            return self
        times = self.group_size // size
        scales, offsets = (part.repeat_interleave(times, 1) for part in (self.scales, self.offsets))
        return self._like(self.numbers, scales, offsets)

    def _like(
        self, numbers: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor
    ) -> "QuantizedWeight":
        return QuantizedWeight(
            numbers, scales, offsets, bits=self.bits, dtype=self.dtype, group_of=self.group_of
        )

    def __repr__(self) -> str:  # type: ignore[override]
        return f"QuantizedWeight({list(self.shape)}, {self.bits} bits, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares it as a plain method
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Compute the weights and run the operation on them, but for those that need not."""
        aten = torch.ops.aten
        if func is aten.detach.default:
            weight = args[0]
            return weight._like(weight.numbers, weight.scales, weight.offsets)
        if func is aten.cat.default and (merged := _merged(args)) is not None:
            return merged
        if func is aten.embedding.default and isinstance(args[0], cls):
            weight, ids = args[:2]
            return weight.rows(ids.flatten()).dequantized().view(*ids.shape, -1)
        if func is aten._to_copy.default:  # without rounding to this dtype first
            return args[0].dequantized((kwargs or {}).get("dtype"))
        args, kwargs = pytree.tree_map_only(cls, cls.dequantized, (args, kwargs or {}))
        return func(*args, **kwargs)


def _merged(args: tuple[Any, ...]) -> QuantizedWeight | None:
    """Put weights of the same inputs below each other, in the most bits and the smallest groups.

    Returns None if one is of another form, or their inputs are in different groups.
    """
    weights, dim = args[0], args[1] if len(args) > 1 else 0
    if dim != 0 or not all(isinstance(weight, QuantizedWeight) for weight in weights):
        return None
    first = weights[0].group_of
    if any((weight.group_of is None) != (first is None) for weight in weights):
        return None
    if first is not None and not all(torch.equal(weight.group_of, first) for weight in weights):
        return None
    if any(weight.bits == 8 for weight in weights):
        weights = [weight.with_eight_bits() for weight in weights]
    if first is None:
        size = min(weight.group_size for weight in weights)
        if any(weight.group_size % size for weight in weights):
            return None
        weights = [weight._in_groups_of(size) for weight in weights]
    parts = ([getattr(w, name) for w in weights] for name in ("numbers", "scales", "offsets"))
    return weights[0]._like(*(torch.cat(part) for part in parts))


def nibbles(numbers: torch.Tensor) -> torch.Tensor:
    """Store numbers below 16, uint8 [out, in], as [out, in / 2] with the first in the low bits."""
    return numbers[:, ::2] | numbers[:, 1::2] << 4


def can_quantize_to_int4(weight: torch.Tensor) -> bool:
    """Whether a weight [out, in] divides into groups of this server's own size."""
    return weight.ndim == 2 and weight.shape[1] % GROUP_SIZE == 0


def quantized_to_int4(weight: torch.Tensor, group_size: int = GROUP_SIZE) -> QuantizedWeight:
    """Quantize a weight [out, in]: sixteen even steps between limits of each group of inputs.

    Of a few widths of the steps each group takes the one with the least squared error. With the
    widest a weight is off by at most a thirtieth of its group's range; a narrower one has larger
    errors at the ends of the range and smaller ones between them. Scales and offsets are rounded to
    float16 first where that loses next to nothing, since the kernels store them so then.
    """
    parts = [_quantized(rows, group_size) for rows in weight.detach().split(ROWS_AT_ONCE)]
    numbers, scales, offsets = (torch.cat(part) for part in zip(*parts, strict=True))
    return QuantizedWeight(numbers, scales, offsets, bits=4, dtype=weight.dtype)


def _quantized(
    weight: torch.Tensor, group_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return numbers as nibbles, scales and offsets."""
    grouped = weight.float().unflatten(1, (-1, group_size))
    low, high = grouped.amin(-1), grouped.amax(-1)
    middle, half = (high + low) / 2, (high - low) / 2
    scale = offset = torch.empty(0)
    numbers = torch.zeros(grouped.shape, dtype=torch.uint8, device=weight.device)
    least = torch.full_like(low, torch.inf)
    rounds = _can_round_to_half(low, high)
    new, back = torch.empty_like(grouped), torch.empty_like(grouped)
    for shrink in SHRINKS:
        new_offset = middle - half * shrink
        new_scale = (half * shrink * 2 / 15).clamp_(min=SMALLEST)
        if rounds:
            new_offset, new_scale = new_offset.half().float(), new_scale.half().float()
            new_scale.clamp_(min=torch.finfo(torch.float16).tiny)
        torch.sub(grouped, new_offset[..., None], out=new)
        new.div_(new_scale[..., None]).round_().clamp_(0, 15)
        torch.mul(new, new_scale[..., None], out=back)
        error = back.add_(new_offset[..., None]).sub_(grouped).square_().sum(-1)
        if not len(scale):
            scale, offset = new_scale, new_offset
        wins = error < least
        scale, offset = torch.where(wins, new_scale, scale), torch.where(wins, new_offset, offset)
        numbers = torch.where(wins[..., None], new.to(torch.uint8), numbers)
        least = torch.minimum(error, least)
    return nibbles(numbers.flatten(1)), scale, offset


def _can_round_to_half(low: torch.Tensor, high: torch.Tensor) -> bool:
    """Whether float16 scales and offsets are as good, for groups of these limits of weights.

    They are if rounding moves no weight by more than some sixteenth of a step: a group's weights
    are not far from zero beside their range, and its step is in float16's normal range. Groups of
    equal weights must be exact.
    """
    half_range = (high - low) / 2
    largest = torch.maximum(high.abs(), low.abs())
    is_near_zero = largest <= half_range * FARTHEST
    is_normal = (half_range >= LEAST_HALF_RANGE) & (largest <= torch.finfo(torch.float16).max)
    is_exact = (half_range == 0) & (low == low.half().float())
    return bool((is_near_zero & is_normal | is_exact).all())
