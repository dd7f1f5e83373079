"""Reads tensors of GGUF files: quantized ones as `QuantizedWeight`, others unchanged.

Every supported type says exactly what a `QuantizedWeight` says, with the rounding of one more
addition: numbers of four bits for Q4_0, Q4_1 and Q4_K, of eight for all other types.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from container.errors import ModelLoadError
from container.model.layers.quantized_weight import QuantizedWeight, nibbles

# Blocks' bytes, uint8 [count, bytes of a block], to numbers [count, weights], scales and offsets
# [count, groups].
Parts = tuple[np.ndarray, np.ndarray, np.ndarray]
PLAIN = {"F32": np.float32, "F16": np.float16, "F64": np.float64}


def read_tensor(tensor: Any, dtype: torch.dtype) -> torch.Tensor:
    """Read a tensor of `gguf.GGUFReader`; `dtype` is what a quantized one computes.

    Raises ModelLoadError for a type that is not supported.
    """
    name = tensor.tensor_type.name
    shape = tuple(int(size) for size in reversed(tensor.shape))
    if name in PLAIN:
        return torch.from_numpy(np.array(tensor.data)).view(shape)
    if name == "BF16":
        return torch.from_numpy(np.array(tensor.data)).view(torch.bfloat16).view(shape)
    if name not in BLOCKS:
        known = ", ".join([*PLAIN, "BF16", *BLOCKS])
        raise ModelLoadError(
            f"tensor {tensor.name} has the type {name}, which is not supported; convert the model "
            f"to one of {known}"
        )
    return _quantized(np.array(tensor.data), name, shape, dtype)


def _quantized(
    data: np.ndarray, name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    size, parse, bits = BLOCKS[name]
    numbers, scales, offsets = parse(data.reshape(-1, size))
    outputs = int(np.prod(shape[:-1]))
    rows = torch.from_numpy(numbers).view(outputs, shape[-1])
    weight = QuantizedWeight(
        nibbles(rows) if bits == 4 else rows,
        torch.from_numpy(scales).view(outputs, -1),
        torch.from_numpy(offsets).view(outputs, -1),
        bits=bits,
        dtype=dtype,
    )
    return weight if len(shape) == 2 else weight.dequantized(torch.float32).view(shape)


def _halves(blocks: np.ndarray) -> np.ndarray:
    """Read bytes as float16."""
    return np.ascontiguousarray(blocks).view(np.float16).astype(np.float32)


def _low_high(packed: np.ndarray) -> np.ndarray:
    """Read bytes [..., n] as [..., 2 n]: all low nibbles, then all high ones."""
    return np.concatenate([packed & 15, packed >> 4], -1)


def _q4_0(blocks: np.ndarray) -> Parts:
    scale = _halves(blocks[:, :2])
    return _low_high(blocks[:, 2:]), scale, scale * np.float32(-8)


def _q4_1(blocks: np.ndarray) -> Parts:
    return _low_high(blocks[:, 4:]), _halves(blocks[:, :2]), _halves(blocks[:, 2:4])


def _fifth_bits(packed: np.ndarray) -> np.ndarray:
    """Read 32 bits, the lowest first, as the fifth bit of 32 numbers."""
    return np.unpackbits(packed, axis=-1, bitorder="little") << 4


def _q5_0(blocks: np.ndarray) -> Parts:
    scale = _halves(blocks[:, :2])
    return _low_high(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6]), scale, scale * np.float32(-16)


def _q5_1(blocks: np.ndarray) -> Parts:
    numbers = _low_high(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return numbers, _halves(blocks[:, :2]), _halves(blocks[:, 2:4])


def _q8_0(blocks: np.ndarray) -> Parts:
    """Signed numbers, which an offset of 128 makes unsigned."""
    scale = _halves(blocks[:, :2])
    return blocks[:, 2:] ^ np.uint8(128), scale, scale * np.float32(-128)


def _k_scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read eight scales and offsets, of six bits each beside two factors: Q4_K and Q5_K."""
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 2 & 48)], -1)
    offsets = np.concatenate([second & 63, (third >> 4) | (second >> 2 & 48)], -1)
    return _halves(blocks[:, :2]) * scales, _halves(blocks[:, 2:4]) * offsets * np.float32(-1)


def _k_nibbles(packed: np.ndarray) -> np.ndarray:
    """Read 128 bytes as 256 numbers: of each 32 bytes the low nibbles, then the high ones."""
    return _low_high(packed.reshape(-1, 4, 32)).reshape(-1, 256)


def _q4_k(blocks: np.ndarray) -> Parts:
    return _k_nibbles(blocks[:, 16:]), *_k_scales(blocks)


def _q5_k(blocks: np.ndarray) -> Parts:
    """Bit g of a byte of 32 is the fifth bit in group g."""
    high = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return _k_nibbles(blocks[:, 48:]) | high.reshape(-1, 256) << 4, *_k_scales(blocks)


def _q6_k(blocks: np.ndarray) -> Parts:
    """Halves of 128 numbers: 64 bytes of nibbles, and 32 of two bits for each quarter."""
    low = _low_high(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
    scales = _halves(blocks[:, 208:]) * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return (low | high << 4).reshape(-1, 256), scales, scales * np.float32(-32)


# By type: bytes of a block, its reader, and bits of a number.
BLOCKS: dict[str, tuple[int, Callable[[np.ndarray], Parts], int]] = {
    "Q4_0": (18, _q4_0, 4),
    "Q4_1": (20, _q4_1, 4),
    "Q5_0": (22, _q5_0, 8),
    "Q5_1": (24, _q5_1, 8),
    "Q8_0": (34, _q8_0, 8),
    "Q4_K": (144, _q4_k, 4),
    "Q5_K": (176, _q5_k, 8),
    "Q6_K": (210, _q6_k, 8),
}
