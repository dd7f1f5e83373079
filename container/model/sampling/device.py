"""Sampling on the device, without reading anything back; see container.model.sampling.rules."""

import torch

from container.messages.engine import SamplingParams
from container.model.sampling.distribution import total
from container.model.sampling.rules import choose_tokens

# int32's limits: the sign bit alone, and all the others.
_LOWEST, _HIGHEST = -(2**31), 2**31 - 1


class DeviceSelector:
    """Selects by topk, or by a search over the bits of a float. Nothing is read back."""

    # Most logits that topk lists; it sorts its result in one thread block's memory.
    longest_list = 1024

    def largest(self, values: torch.Tensor, count: int) -> torch.Tensor:
        """Return the largest values of each row, in descending order: [rows, count]."""
        return values.topk(count, -1).values

    def mass_floor(
        self, values: torch.Tensor, weights: torch.Tensor, mass: torch.Tensor
    ) -> torch.Tensor:
        """Search the floor bit by bit, highest first; exact after 32 rounds for any float32 values.

        A round reads 13 bytes for each logit: keys, weights, masked weights and a mask. A sort of
        the vocabulary reads and writes less, but moves a 64-bit index with each logit: in and out
        at least 24 bytes, before any sum.
        """
        mass = mass.clamp(min=torch.finfo(mass.dtype).tiny)  # so that at least one stays
        zero = weights.new_zeros(())  # on the device; torch could copy a Python scalar there
        keys = float_keys(values)
        key = torch.full_like(keys[:, :1], _LOWEST)
        for bit in reversed(range(32)):
            greater = key ^ (_LOWEST if bit == 31 else 1 << bit)
            weight_above = total(torch.where(keys >= greater, weights, zero))
            key = torch.where(weight_above >= mass, greater, key)
        return _floats(key)


_SELECTOR = DeviceSelector()


def choose_on_device(
    logits: torch.Tensor, params: list[SamplingParams], numbers: list[float]
) -> torch.Tensor:
    """Choose a token for each row of float32 logits [rows, vocabulary]: int64 [rows]."""
    return choose_tokens(logits, params, numbers, _SELECTOR)


def float_keys(values: torch.Tensor) -> torch.Tensor:
    """Map float32 to int32 in the same order; 0 and -0 map to the same key.

    A float's bits are sign and magnitude: all bits of negative ones but the sign are inverted.
    """
    return _invert_negative((values + 0.0).view(torch.int32))  # -0 + 0 is 0


def _floats(keys: torch.Tensor) -> torch.Tensor:
    """Map keys back to float32. The least key gives NaN, and no value is below that."""
    return _invert_negative(keys).view(torch.float32)


def _invert_negative(bits: torch.Tensor) -> torch.Tensor:
    """Invert all bits of negative numbers but the sign, in place; its own inverse."""
    return bits.bitwise_xor_((bits >> 31).bitwise_and_(_HIGHEST))
