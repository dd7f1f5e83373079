"""The paged KV cache's tensors, one pair for each layer.

A layer's keys are [num_blocks * kv_heads, block_size, head_dim]: a head's part of a block is
contiguous, so that gathering a sequence's blocks copies large pieces and yields the operand of a
batched GEMM directly. Block ids come from the engine; padding tokens write to the scratch block,
one past the engine's last.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

# Tokens of a block, on each kind of device.
BLOCK_SIZE = {"cpu": 32, "cuda": 16}
FP8 = {torch.float8_e4m3fn, torch.float8_e5m2}


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Shape of one layer's cache entry for a token; `device`, if not the inputs' device.

    `chunk`: the positions of a chunk; a token attends only within its chunk. `is_latent`:
    its values are the first numbers of its keys, and not stored.
    """

    kv_heads: int
    key_dim: int
    value_dim: int
    device: torch.device | None = None
    chunk: int | None = None
    is_latent: bool = False

    @property
    def numbers_per_token(self) -> int:
        """Elements (not bytes) per token."""
        return self.kv_heads * (self.key_dim + (0 if self.is_latent else self.value_dim))


class KVCache:
    """Owns the tensors; written and read only within a forward pass."""

    def __init__(
        self,
        shapes: list[LayerShape],
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_size = block_size
        self.scratch_block = num_blocks
        self.shapes = shapes
        self.dtype = dtype
        rows = num_blocks + 1
        self.keys = [
            _zeros((rows * s.kv_heads, block_size, s.key_dim), dtype, s.device or device)
            for s in shapes
        ]
        self.values = [
            keys[..., : s.value_dim]
            if s.is_latent
            else _zeros((rows * s.kv_heads, block_size, s.value_dim), dtype, s.device or device)
            for s, keys in zip(shapes, self.keys, strict=True)
        ]

    def write(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor
    ) -> None:
        """Store keys and values, [tokens, kv_heads, dim], at rows `slots`, [tokens, kv_heads]."""
        _put(self.keys[layer], slots, keys)
        if not self.shapes[layer].is_latent:
            _put(self.values[layer], slots, values)

    def as_stored(self, states: torch.Tensor) -> torch.Tensor:
        """Round states to the cache's format, as writing and reading them back would."""
        return _to_fp8(states, self.dtype).to(states.dtype) if self.dtype in FP8 else states

    def gather(
        self, layer: int, rows: torch.Tensor, num_sequences: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Read whole blocks of keys and values: [sequences * kv_heads, blocks * block_size, dim].

        `rows` is [sequences * kv_heads * blocks]: block id * kv_heads + head.
        """
        shape = self.shapes[layer]
        batch = num_sequences * shape.kv_heads
        keys = _take(self.keys[layer], rows, dtype).view(batch, -1, shape.key_dim)
        if shape.is_latent:
            return keys, keys[..., : shape.value_dim]
        return keys, _take(self.values[layer], rows, dtype).view(batch, -1, shape.value_dim)


class RoundingKVCache(KVCache):
    """Holds numbers of a wide dtype, rounded to those of a narrow one: the ideal narrow cache.

    It shares nothing with how a `KVCache` stores the narrow dtype.
    """

    def __init__(self, *args: Any, narrow: torch.dtype, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._narrow = narrow

    def write(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor
    ) -> None:
        """Store rounded keys and values; see `KVCache`."""
        super().write(layer, self.as_stored(keys), self.as_stored(values), slots)

    def as_stored(self, states: torch.Tensor) -> torch.Tensor:
        """Round states to the narrow dtype, whose largest number stands for all larger ones."""
        largest = torch.finfo(self._narrow).max
        rounded = states.to(self._narrow).to(states.dtype)
        return torch.where(states.abs() < largest, rounded, states.sign() * largest)


# The shape of a layer without keys and values.
NO_KEYS = LayerShape(0, 0, 0)


def bytes_per_token(shapes: list[LayerShape], dtype: torch.dtype) -> int:
    """Cache bytes for one token over all layers."""
    return sum(shape.numbers_per_token for shape in shapes) * dtype.itemsize


def fill_stale(tensor: torch.Tensor) -> None:
    """Fill a new cache in place with random numbers, like those that earlier sequences leave."""
    if tensor.numel() == 0:
        return
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(tensor.shape[1:], generator=generator) * 3
    tensor.view(torch.uint8 if tensor.dtype in FP8 else tensor.dtype)[:] = (
        row.to(tensor.dtype).view(torch.uint8) if tensor.dtype in FP8 else row.to(tensor.dtype)
    ).to(tensor.device)


def fill_blocks(cache: KVCache, num_blocks: int) -> None:
    """Fill the first blocks of a cache in place with random numbers, different in each block."""
    generator = torch.Generator().manual_seed(0)
    for shape, keys, values in zip(cache.shapes, cache.keys, cache.values, strict=True):
        for tensor in (keys,) if shape.is_latent else (keys, values):
            part = tensor[: num_blocks * shape.kv_heads]
            numbers = torch.randn(part.shape, generator=generator).to(tensor.dtype)
            if tensor.dtype in FP8:
                part, numbers = part.view(torch.uint8), numbers.view(torch.uint8)
            part.copy_(numbers)


def _to_fp8(states: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # The conversion turns values that are too large into infinity or NaN; clamp them instead.
    limit = torch.finfo(dtype).max
    return states.clamp(-limit, limit).to(dtype)


# torch implements indexing for bytes, but not for FP8 formats.


def _put(cache: torch.Tensor, slots: torch.Tensor, states: torch.Tensor) -> None:
    if cache.dtype in FP8:
        states = _to_fp8(states, cache.dtype).view(torch.uint8)
        cache = cache.view(torch.uint8)
    _flat(cache).index_put_((slots,), states)


def _take(cache: torch.Tensor, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if cache.dtype in FP8:
        return cache.view(torch.uint8).index_select(0, rows).view(cache.dtype).to(dtype)
    return cache.index_select(0, rows)


def _flat(cache: torch.Tensor) -> torch.Tensor:
    return cache.view(-1, cache.shape[-1])


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu" or 0 in shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy gets zero pages from the kernel, which take memory only once they are written.
    nbytes = int(np.prod(shape)) * dtype.itemsize
    return torch.from_numpy(np.zeros(nbytes, np.uint8)).view(dtype).view(shape)
