"""The paged KV cache's tensors, one pair for each layer.

A layer's keys are [num_blocks * kv_heads, block_size, head_dim]: all that one head keeps in a block
is contiguous, so that gathering a sequence's blocks copies large pieces and gives the operand of a
batched product as it is. Block ids come from the engine; one block past its last, the scratch
block, takes what padding tokens write.
"""

from dataclasses import dataclass

import numpy as np
import torch

# Tokens of a block, on each kind of device.
BLOCK_SIZE = {"cpu": 32, "cuda": 16}
FP8 = {torch.float8_e4m3fn, torch.float8_e5m2}


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer keeps for a token, and on which device, if not where inputs go."""

    kv_heads: int
    key_dim: int
    value_dim: int
    device: torch.device | None = None

    @property
    def numbers_per_token(self) -> int:
        """Numbers, not bytes."""
        return self.kv_heads * (self.key_dim + self.value_dim)


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
            _zeros((rows * s.kv_heads, block_size, s.value_dim), dtype, s.device or device)
            for s in shapes
        ]

    def write(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor
    ) -> None:
        """Store new tokens' keys and values, [tokens, kv_heads, dim], at [tokens, kv_heads]."""
        _put(self.keys[layer], slots, keys)
        _put(self.values[layer], slots, values)

    def as_stored(self, states: torch.Tensor) -> torch.Tensor:
        """What would be read if it had been written: rounded to the cache's format."""
        return _to_fp8(states, self.dtype).to(states.dtype) if self.dtype in FP8 else states

    def gather(
        self, layer: int, rows: torch.Tensor, num_sequences: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Read whole blocks as [sequences * kv_heads, blocks * block_size, dim], twice.

        `rows` is [sequences * kv_heads * blocks]: block id * kv_heads + head.
        """
        batch = num_sequences * self.shapes[layer].kv_heads
        keys = _take(self.keys[layer], rows, dtype)
        values = _take(self.values[layer], rows, dtype)
        return (
            keys.view(batch, -1, keys.shape[-1]),
            values.view(batch, -1, values.shape[-1]),
        )


def bytes_per_token(shapes: list[LayerShape], dtype: torch.dtype) -> int:
    """Cache bytes for one token over all layers."""
    return sum(shape.numbers_per_token for shape in shapes) * dtype.itemsize


def fill_stale(tensor: torch.Tensor) -> None:
    """Fill a new cache with numbers as an earlier sequence could have left them, in place."""
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(tensor.shape[1:], generator=generator) * 3
    tensor.view(torch.uint8 if tensor.dtype in FP8 else tensor.dtype)[:] = (
        row.to(tensor.dtype).view(torch.uint8) if tensor.dtype in FP8 else row.to(tensor.dtype)
    ).to(tensor.device)


def _to_fp8(states: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # The conversion makes infinities or NaN of what is too large; attention wants the largest.
    limit = torch.finfo(dtype).max
    return states.clamp(-limit, limit).to(dtype)


# Indexing is not written for numbers of eight bits, but for bytes.


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
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy asks the kernel for zero pages, which take memory only once they are written.
    nbytes = int(np.prod(shape)) * dtype.itemsize
    return torch.from_numpy(np.zeros(nbytes, np.uint8)).view(dtype).view(shape)
