"""The check of the kernels: each must compute what torch computes, before it may serve.

Random numbers in both formats, sizes that are not those of any model, all forms of attention: a
decode and the rest of a prompt side by side, with and without a window and norms of heads.
"""

import torch

from container.model.attention import Chunk, DecodeGroup, PagedStep, Rule
from container.model.fused_glue import FusedGlue
from container.model.glue import Glue, LayerFacts
from container.model.kernels import DTYPES, Kernels
from container.model.kv_cache import KVCache, LayerShape

# As a share of the largest number.
TOLERANCE = {torch.bfloat16: 0.02, torch.float32: 1e-5}
HIDDEN, WIDTH, HEADS, KV_HEADS, DIM, BLOCK = 48, 80, 6, 2, 32, 5
DECODED, CHUNK, CHUNK_END = 23, 7, 18


@torch.inference_mode()
def check(kernels: Kernels) -> None:
    """Compare with torch. Raises OSError with what differs."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(99, (5, 333), generator=generator).float()
    places = torch.zeros(5, dtype=torch.int64)
    kernels.argmax(rows.data_ptr(), places.data_ptr(), *rows.shape)
    if not torch.equal(places, rows.argmax(-1)):
        raise OSError("it computes something else than torch, another argmax")
    for dtype in DTYPES:
        for window in (None, 6):
            for head_norm in (False, True):
                _check(kernels, generator, dtype, window, head_norm=head_norm)


def _check(
    kernels: Kernels,
    generator: torch.Generator,
    dtype: torch.dtype,
    window: int | None,
    *,
    head_norm: bool,
) -> None:
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    norms = (random(HIDDEN), 1e-6), (random(HIDDEN), 1e-6)
    heads = (random(HEADS + KV_HEADS, DIM), 1e-6) if head_norm else None
    act = torch.nn.functional.silu
    facts = LayerFacts(0, HEADS, KV_HEADS, DIM, Rule(0.2, window), norms, heads, act)
    rows = 2 + CHUNK  # a decode, a chunk, and one row of padding
    x, more = random(rows, HIDDEN), random(rows, HIDDEN)
    qkv, gate_up = random(rows, (HEADS + 2 * KV_HEADS) * DIM), random(rows, 2 * WIDTH)
    angles = random(1, rows, DIM), random(1, rows, DIM)
    kept = random(10 * KV_HEADS, BLOCK, DIM), random(10 * KV_HEADS, BLOCK, DIM)
    results = []
    for glue in (Glue(facts), FusedGlue(facts, kernels)):
        step = _step(dtype, kept)
        results.append(
            [
                glue.before_attention(x, step).clone(),
                glue.attention(qkv.clone(), angles, step).clone(),
                *(one.clone() for one in glue.before_gate(x, more.clone(), step)),
                glue.gated(gate_up, step).clone(),
                glue.after(x, more.clone(), step),
                step.cache.keys[0],
                step.cache.values[0],
            ]
        )
    for expected, got in zip(*results, strict=True):
        off = (got.float() - expected.float()).abs().max() / expected.float().abs().max()
        if not off <= TOLERANCE[dtype]:
            raise OSError(f"it computes something else than torch, off by {off:.2g} ({dtype})")


def _step(dtype: torch.dtype, kept: tuple[torch.Tensor, torch.Tensor]) -> PagedStep:
    """A sequence that decodes, in blocks 6, 1, 4, ..., and another's prompt after a prefix."""
    shape = LayerShape(KV_HEADS, DIM, DIM)
    cache = KVCache(
        [shape], num_blocks=9, block_size=BLOCK, dtype=dtype, device=torch.device("cpu")
    )
    cache.keys[0].copy_(kept[0])
    cache.values[0].copy_(kept[1])
    decode = torch.tensor([[6, 1, 4, 0, 2]])
    prompt = torch.tensor([[5, 3, 8, 7]])
    positions = [*range(CHUNK_END - CHUNK, CHUNK_END)]
    slots = [int(decode[0, (DECODED - 1) // BLOCK]) * BLOCK + (DECODED - 1) % BLOCK]
    slots += [int(prompt[0, at // BLOCK]) * BLOCK + at % BLOCK for at in positions]
    slots += [cache.scratch_block * BLOCK]
    group = DecodeGroup(0, 1, decode, torch.tensor([DECODED]))
    chunk = Chunk(1, 1 + CHUNK, CHUNK_END, prompt)
    return PagedStep(cache, torch.tensor(slots), [group], [chunk])
