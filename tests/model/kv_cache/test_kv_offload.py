"""Blocks that go to the host's memory and come back."""

import random

import pytest
import torch

from container.engine.schedule import BlockCopy
from container.errors import ConfigError
from container.model.execution.step_measurement import is_faster_to_copy, largest_step
from container.model.forward_batch import ForwardPlan
from container.model.kv_cache.cache import KVCache, LayerShape
from container.model.kv_cache.offload import STAGED, HostCache
from container.model.loaded_model import LoadedModel
from container.model.loading import engine_limits
from container.settings.engine import MemorySettings
from tests.support.models import tiny_models
from tests.support.models.prepared import prepare

CPU = torch.device("cpu")
LAYERS = [LayerShape(2, 8, 8), LayerShape(1, 16, 4)]  # layers need not be alike


def cache_of(dtype: torch.dtype, num_blocks: int = 2 * STAGED) -> KVCache:
    cache = KVCache(LAYERS, num_blocks=num_blocks, block_size=4, dtype=dtype, device=CPU)
    for tensor in (*cache.keys, *cache.values):
        tensor.view(torch.uint8).random_(0, 100)
    return cache


def content(cache: KVCache, block: int) -> bytes:
    """All that the layers keep in a block."""
    parts = []
    for layer, shape in enumerate(LAYERS):
        rows = slice(block * shape.kv_heads, (block + 1) * shape.kv_heads)
        for tensor in (cache.keys[layer], cache.values[layer]):
            parts.append(tensor[rows].view(torch.uint8).flatten())
    return bytes(torch.cat(parts).tolist())


@pytest.mark.parametrize("piece", [1 << 30, 2048], ids=["one piece", "many pieces"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_block_copies_run_in_order(
    dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container.model.kv_cache.offload.PIECE_BYTES", piece)
    rnd = random.Random(3)
    cache = cache_of(dtype)
    host = HostCache(cache, 20, CPU)
    blocks = {block: content(cache, block) for block in range(cache.scratch_block)}
    slots: dict[int, bytes] = {}
    for count in (1, 7, 3 * STAGED):
        copies: list[BlockCopy] = []
        read: set[int] = set()
        for _ in range(count):
            to_host = not slots or rnd.random() < 0.5
            block = rnd.choice([one for one in blocks if one not in read])
            slot = rnd.randrange(20) if to_host else rnd.choice(sorted(slots))
            if to_host:
                slots[slot] = blocks[block]
            else:
                blocks[block] = slots[slot]
                read.add(block)  # the engine brings back into a block once a step
            copies.append(BlockCopy(to_host, block, slot))
        host.copy_blocks(copies)
        assert {block: content(cache, block) for block in blocks} == blocks


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, True), (0.2, False)])
def test_copying_pays_when_it_is_faster_than_computing(
    seconds: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)

    def run(plan: ForwardPlan) -> None:
        nonlocal now
        assert [block_copy.block_id for block_copy in plan.copies] in ([], [0, 1, 2, 3])
        assert all(block_copy.slot < 3 and not block_copy.to_host for block_copy in plan.copies)
        now += 0.1 + (seconds if plan.copies else 0.0)

    prompt = largest_step(16, 1, block_size=4, context=16)
    assert is_faster_to_copy(run, prompt, 3, CPU) is expected


def loaded() -> LoadedModel:
    return prepare(tiny_models.make("llama"), torch.float32, CPU)


def test_slots_fit_the_shared_swap_space() -> None:
    model = loaded()
    block = model.bytes_per_token * 32
    settings = MemorySettings(swap_space=block * 100 / 2**30)
    assert engine_limits.find_slots(settings, model, 1) == 100
    assert engine_limits.find_slots(settings, model, 4) == 25
    # A CPU's cache is in the same memory.
    assert engine_limits.find_slots(MemorySettings(), model, 1) == 0
    assert engine_limits.find_slots(MemorySettings(swap_space=0.0), model, 1) == 0


def test_space_that_cannot_be_used_or_had_is_refused() -> None:
    with pytest.raises(ConfigError, match="SWAP_SPACE cannot work here: PREFIX_CACHING is off"):
        engine_limits.find_slots(MemorySettings(swap_space=1.0, prefix_caching=False), loaded(), 1)
    with pytest.raises(ConfigError, match=r"SWAP_SPACE=1000000 exceeds the [\d.]+ GiB of free"):
        engine_limits.find_slots(MemorySettings(swap_space=1e6), loaded(), 1)
    own = prepare(tiny_models.make("mvp"), torch.float32, CPU)
    with pytest.raises(ConfigError, match="the model uses its own cache"):
        engine_limits.find_slots(MemorySettings(swap_space=1.0), own, 1)
