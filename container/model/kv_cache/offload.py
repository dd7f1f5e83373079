"""KV offloading: copies blocks of the KV cache to host memory and back.

A slot holds one block of all layers contiguously, so that it crosses the bus in one copy. On the
device, blocks are packed into that form first:

    layers' keys and values  <->  staging [blocks, bytes of a block]  <->  slots, pinned
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch

from container.engine.schedule import BlockCopy
from container.model.async_copy import to_device
from container.model.kv_cache.cache import KVCache

# Blocks packed at a time.
STAGED = 32
# torch rounds pinned allocations up to a power of two, so the slots are allocated in pieces.
PIECE_BYTES = 1 << 30


class HostCache:
    """Owns the host memory slots; all layers of the cache are on one device."""

    def __init__(self, cache: KVCache, num_slots: int, device: torch.device) -> None:
        self._device = device
        self._parts = [
            _by_block(tensors[layer], shape.kv_heads)
            for layer, shape in enumerate(cache.shapes)
            for tensors in ((cache.keys,) if shape.is_latent else (cache.keys, cache.values))
        ]
        size = sum(part.shape[1] for part in self._parts)
        self._staging = torch.empty(STAGED, size, dtype=torch.uint8, device=device)
        self._per_piece = max(1, PIECE_BYTES // size)
        self._pieces = [
            _host_memory(min(self._per_piece, num_slots - start), size, device)
            for start in range(0, num_slots, self._per_piece)
        ]

    @torch.inference_mode()
    def copy_blocks(self, copies: Sequence[BlockCopy]) -> None:
        """Run block copies in order; on a GPU they are queued."""
        for to_host, run in groupby(copies, key=lambda block_copy: block_copy.to_host):
            for part in _in_parts(list(run)):
                if to_host:
                    self._to_host(part)
                else:
                    self._to_device(part)

    def _slot(self, slot: int) -> torch.Tensor:
        piece, row = divmod(slot, self._per_piece)
        return self._pieces[piece][row]

    def _to_host(self, copies: list[BlockCopy]) -> None:
        index = to_device([block_copy.block_id for block_copy in copies], self._device)
        start = 0
        for blocks in self._parts:
            stop = start + blocks.shape[1]
            self._staging[: len(copies), start:stop] = blocks.index_select(0, index)
            start = stop
        for row, block_copy in enumerate(copies):
            self._slot(block_copy.slot).copy_(self._staging[row], non_blocking=True)

    def _to_device(self, copies: list[BlockCopy]) -> None:
        for row, block_copy in enumerate(copies):
            self._staging[row].copy_(self._slot(block_copy.slot), non_blocking=True)
        index = to_device([block_copy.block_id for block_copy in copies], self._device)
        start = 0
        for blocks in self._parts:
            stop = start + blocks.shape[1]
            blocks.index_copy_(0, index, self._staging[: len(copies), start:stop])
            start = stop


def _host_memory(num_slots: int, size: int, device: torch.device) -> torch.Tensor:
    """Allocate slots, [slots, size] bytes, pinned for asynchronous copies of a GPU."""
    return torch.empty(num_slots, size, dtype=torch.uint8, pin_memory=device.type == "cuda")


def _by_block(cache: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """View [blocks * kv_heads, block_size, dim] as bytes: [blocks, bytes of a block]."""
    return cache.view(torch.uint8).view(cache.shape[0] // kv_heads, -1)


def _in_parts(copies: list[BlockCopy]) -> Iterator[list[BlockCopy]]:
    """Split copies into runs that fit the staging buffer."""
    for start in range(0, len(copies), STAGED):
        yield copies[start : start + STAGED]
