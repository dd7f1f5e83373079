"""Reads weights of AWQ, GPTQ and compressed-tensors, which are packed in words of 32 bits.

All three say weight = (number - zero) * scale for each group of inputs, which is what a
`QuantizedWeight` says with offset = -zero * scale.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from container.errors import ModelLoadError
from container.model.layers.quantized_weight import QuantizedWeight, nibbles

# AWQ's order of a word's eight outputs, the lowest bits first.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Layout:
    """A layout of packed weights: the suffixes of a layer's tensors, and their reader."""

    suffixes: tuple[str, ...]
    read: Callable[[Tensors, torch.dtype], QuantizedWeight]


def choose_layout(quantization: Mapping[str, Any]) -> Layout:
    """Choose by config.json's quantization_config. Raises ModelLoadError for other kinds."""
    return METHODS[quantization["quant_method"]](quantization)


def _gptq_layout(quantization: Mapping[str, Any]) -> Layout:
    bits = _checked_bits(quantization.get("bits"), "bits", (4, 8))
    # The first version of the format stores zeros less one.
    add = 0 if quantization.get("checkpoint_format") == "gptq_v2" else 1

    def read(tensors: Tensors, dtype: torch.dtype) -> QuantizedWeight:
        numbers = _unpacked(tensors["qweight"].T, bits)
        zeros = (_unpacked(tensors["qzeros"], bits) + add).T
        scales = tensors["scales"].float().T.contiguous()
        return _weight(numbers, zeros, scales, bits, dtype, tensors.get("g_idx"))

    return Layout(("qweight", "qzeros", "scales", "g_idx"), read)


def _awq_layout(quantization: Mapping[str, Any]) -> Layout:
    bits = _checked_bits(quantization.get("bits", quantization.get("w_bit")), "bits", (4,))
    version = str(quantization.get("version", "gemm")).lower()
    if version != "gemm":
        raise ModelLoadError(
            f"quantization_config has version {version!r} of AWQ; only 'gemm' is supported"
        )
    order = torch.tensor(AWQ_ORDER).argsort()

    def outputs_of(packed: torch.Tensor) -> torch.Tensor:
        return _unpacked(packed, bits).unflatten(1, (-1, 8))[..., order].flatten(1).T

    def read(tensors: Tensors, dtype: torch.dtype) -> QuantizedWeight:
        scales = tensors["scales"].float().T.contiguous()
        numbers, zeros = outputs_of(tensors["qweight"]), outputs_of(tensors["qzeros"])
        return _weight(numbers, zeros, scales, bits, dtype)

    return Layout(("qweight", "qzeros", "scales"), read)


def _compressed_layout(quantization: Mapping[str, Any]) -> Layout:
    groups = quantization.get("config_groups") or {}
    schemes = [group.get("weights") or {} for group in groups.values()]
    if quantization.get("format") != "pack-quantized" or not schemes:
        raise ModelLoadError(
            f"quantization_config has the format {quantization.get('format')!r} of "
            "compressed-tensors; only 'pack-quantized' (W4A16, W8A16) is supported on a CPU"
        )
    if any(group.get("input_activations") for group in groups.values()):
        raise ModelLoadError(
            "quantization_config quantizes input_activations, which is not supported on a CPU; "
            "use a W4A16 checkpoint"
        )
    if len({scheme.get("num_bits") for scheme in schemes}) > 1:
        raise ModelLoadError(
            "quantization_config has groups of different num_bits; use one of both"
        )
    bits = _checked_bits(schemes[0].get("num_bits"), "num_bits", (4, 8))

    def read(tensors: Tensors, dtype: torch.dtype) -> QuantizedWeight:
        outputs, inputs = (int(size) for size in tensors["weight_shape"])
        numbers = _unpacked(tensors["weight_packed"], bits)[:, :inputs]
        scales = tensors["weight_scale"].float().view(outputs, -1)
        if "weight_zero_point" in tensors:
            zeros = _unpacked(tensors["weight_zero_point"].T, bits).T[:outputs]
        else:
            zeros = torch.full_like(scales, 1 << (bits - 1))
        return _weight(numbers, zeros, scales, bits, dtype, tensors.get("weight_g_idx"))

    suffixes = ("packed", "scale", "zero_point", "shape", "g_idx")
    return Layout(tuple(f"weight_{suffix}" for suffix in suffixes), read)


def _checked_bits(bits: object, field: str, supported: tuple[int, ...]) -> int:
    if bits not in supported:
        known = " and ".join(map(str, supported))
        raise ModelLoadError(f"quantization_config has {field} {bits!r}; a CPU serves {known} bits")
    return int(str(bits))


def _unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Read words, int32 [rows, words], as numbers, int32 [rows, words * 32 / bits]."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return (words[..., None] >> shifts & ((1 << bits) - 1)).flatten(1)


def _weight(
    numbers: torch.Tensor,
    zeros: torch.Tensor,
    scales: torch.Tensor,
    bits: int,
    dtype: torch.dtype,
    group_of: torch.Tensor | None = None,
) -> QuantizedWeight:
    small = numbers.to(torch.uint8)
    if group_of is not None and _is_consecutive(group_of, scales.shape[1]):
        group_of = None
    return QuantizedWeight(
        nibbles(small) if bits == 4 else small, scales, -zeros.float() * scales, bits=bits,
        dtype=dtype, group_of=None if group_of is None else group_of.int(),
    )  # fmt: skip


def _is_consecutive(group_of: torch.Tensor, groups: int) -> bool:
    """Whether groups are equal numbers of consecutive inputs; some writers say -1 for that."""
    inputs = len(group_of)
    if inputs % groups:
        return False
    consecutive = torch.arange(inputs) // (inputs // groups)
    return bool((group_of < 0).all()) or torch.equal(group_of.long(), consecutive)


# By quant_method.
METHODS: dict[str, Callable[[Mapping[str, Any]], Layout]] = {
    "gptq": _gptq_layout,
    "awq": _awq_layout,
    "compressed-tensors": _compressed_layout,
}
