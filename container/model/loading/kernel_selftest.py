"""The check of the kernels: each must compute what torch computes, before it may serve.

Random numbers in both formats, sizes that are not those of any model, all forms of attention: a
decode and the rest of a prompt side by side, with and without a window and norms of heads.
"""

import torch
from torch import nn

from container.model.attention.metadata import Chunk, DecodeGroup, PagedStep, Rule
from container.model.attention.unpadded import spans_of
from container.model.kernels.cpu import DTYPES, LANES, Kernels
from container.model.kv_cache.cache import KVCache, LayerShape
from container.model.layers.cpu_decoder import DecoderStack
from container.model.layers.cpu_encoder import EncoderStack
from container.model.layers.cpu_layer_ops import FusedGlue
from container.model.layers.cpu_linear import KernelLinear
from container.model.layers.decoder_layer import LeanLayer
from container.model.layers.encoder_layer import EncoderParts, LeanEncoderLayer
from container.model.layers.int8_linear import quantized
from container.model.layers.layer_ops import Glue, LayerFacts

# As a share of the largest number.
TOLERANCE = {torch.bfloat16: 0.02, torch.float32: 1e-5}
HIDDEN, WIDTH, HEADS, KV_HEADS, DIM, BLOCK = 48, 80, 6, 2, 32, 5
DECODED, CHUNK, CHUNK_END = 23, 7, 18
ROWS = 1 + CHUNK + 1  # a decode, a chunk, and one row of padding
LENGTHS = 1, 33, 40  # of texts; keys are turned for 32 rows
SEEN, QKV = HEADS * DIM, (HEADS + 2 * KV_HEADS) * DIM


@torch.inference_mode()
def check(kernels: Kernels) -> None:
    """Compare with torch. Raises OSError with what differs."""
    _check_logits(kernels)
    for dtype in DTYPES:
        trial = _Trial(kernels, dtype)
        for window in (None, 6):
            for head_norm in (False, True):
                trial.check_glue(window, head_norm=head_norm)
        if kernels.multiplies(dtype):
            for in_int8 in (False, True):
                trial.check_product(in_int8=in_int8)
                trial.check_stack(in_int8=in_int8)
            for dim in (2 * LANES, 3 * LANES):
                trial.check_encoder(dim)


def _check_logits(kernels: Kernels) -> None:
    rows = torch.randint(99, (5, 333), generator=torch.Generator().manual_seed(0)).float()
    places = torch.zeros(5, dtype=torch.int64)
    kernels.argmax(rows.data_ptr(), places.data_ptr(), *rows.shape)
    if not torch.equal(places, rows.argmax(-1)):
        raise OSError("it computes something else than torch, another argmax")
    rows /= 9
    totals = torch.zeros(5, 2)
    kernels.exp_totals(rows.data_ptr(), totals.data_ptr(), *rows.shape)
    if not torch.allclose(totals[:, 0] + totals[:, 1].log(), rows.logsumexp(-1)):
        raise OSError("it computes something else than torch, another sum")


class _Trial:
    """Random numbers of one format, and what is made of them both ways."""

    def __init__(self, kernels: Kernels, dtype: torch.dtype) -> None:
        self._kernels = kernels
        self._dtype = dtype
        self._generator = torch.Generator().manual_seed(0)
        self._angles = self._random(1, ROWS, DIM), self._random(1, ROWS, DIM)
        self._kept = [self._random(10 * KV_HEADS, BLOCK, DIM) for _ in range(2)]

    def check_glue(self, window: int | None, *, head_norm: bool) -> None:
        """What lies between the products of a layer."""
        facts = self._facts(0, window, head_norm=head_norm)
        x, more = self._random(ROWS, HIDDEN), self._random(ROWS, HIDDEN)
        qkv, gate_up = self._random(ROWS, QKV), self._random(ROWS, 2 * WIDTH)
        results = []
        for glue in (Glue(facts), FusedGlue(facts, self._kernels)):
            step = self._step(num_layers=1)
            results.append(
                [
                    glue.before_attention(x, step).clone(),
                    glue.attention(qkv.clone(), self._angles, step).clone(),
                    *(one.clone() for one in glue.before_gate(x, more.clone(), step)),
                    glue.gated(gate_up, step).clone(),
                    glue.after(x, more.clone(), step),
                    *step.cache.keys,
                    *step.cache.values,
                ]
            )
        self._compare(*results)

    def check_product(self, *, in_int8: bool) -> None:
        """Outputs and rows that fill no group and no tile, inputs that fill no piece."""
        weight, bias = self._random(115, 198), self._random(115)
        rows = self._random(67, 198)
        exact = weight.float()
        if in_int8:
            numbers, scales = quantized(weight)
            exact = numbers * scales[:, None]
        expected = nn.functional.linear(rows.float(), exact, bias.float())
        for wide in (False, True):
            product = KernelLinear(weight, bias, self._kernels, in_int8=in_int8, wide=wide)
            self._compare([expected], [product(rows)])

    def check_stack(self, *, in_int8: bool) -> None:
        """Two layers in one call, against one after the other in torch's operations."""
        layers = [self._layer(index, in_int8=in_int8) for index in range(2)]
        x = self._random(1, ROWS, HIDDEN)
        step = self._step(num_layers=2)
        expected = x
        for layer in layers:
            expected = layer(expected, position_embeddings=self._angles, step=step)
            layer.fuse(self._kernels)
        other = self._step(num_layers=2)
        stack = DecoderStack(layers, self._kernels)
        got = stack(x, position_embeddings=self._angles, step=other)
        self._compare(
            [expected, *step.cache.keys, *step.cache.values],
            [got, *other.cache.keys, *other.cache.values],
        )

    def check_encoder(self, dim: int) -> None:
        """A layer of an encoder in one call, against the same in torch's operations."""
        parts = self._encoder_layer(dim)
        x = self._random(1, sum(LENGTHS), 2 * dim)
        spans = spans_of(list(LENGTHS))
        stack = EncoderStack([parts], self._kernels)
        self._compare([LeanEncoderLayer(parts)(x, spans=spans)], [stack(x, spans=spans)])

    def _encoder_layer(self, dim: int) -> EncoderParts:
        def linear(outputs: int, inputs: int) -> nn.Linear:
            made = nn.Linear(1, 1)
            made.weight = nn.Parameter(self._random(outputs, inputs) / 16, requires_grad=False)
            made.bias = nn.Parameter(self._random(outputs), requires_grad=False)
            made.in_features, made.out_features = inputs, outputs
            return made

        hidden, width = 2 * dim, 2 * dim + LANES
        q, k, v, dense = (linear(hidden, hidden) for _ in range(4))
        norms = nn.LayerNorm(hidden, dtype=self._dtype), nn.LayerNorm(hidden, dtype=self._dtype)
        return EncoderParts(
            dim, q, k, v, dense, linear(width, hidden), linear(hidden, width), norms
        )

    def _layer(self, index: int, *, in_int8: bool) -> LeanLayer:
        shapes = (QKV, HIDDEN), (HIDDEN, SEEN), (2 * WIDTH, HIDDEN), (HIDDEN, WIDTH)
        qkv, o, gate_up, down = (
            KernelLinear(self._random(*shape) / 8, None, self._kernels, in_int8=in_int8)
            for shape in shapes
        )
        return LeanLayer(self._facts(index, None, head_norm=True), (qkv, o, gate_up, down))

    def _facts(self, index: int, window: int | None, *, head_norm: bool) -> LayerFacts:
        norms = (self._random(HIDDEN), 1e-6), (self._random(HIDDEN), 1e-6)
        heads = (self._random(HEADS + KV_HEADS, DIM), 1e-6) if head_norm else None
        act = nn.functional.silu
        return LayerFacts(index, HEADS, KV_HEADS, DIM, Rule(0.2, window), norms, heads, act)

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator).to(self._dtype)

    def _compare(self, expected: list[torch.Tensor], got: list[torch.Tensor]) -> None:
        for one, other in zip(expected, got, strict=True):
            off = (other.float() - one.float()).abs().max() / one.float().abs().max()
            if not off <= TOLERANCE[self._dtype]:
                told = f"off by {off:.2g} ({self._dtype})"
                raise OSError(f"it computes something else than torch, {told}")

    def _step(self, *, num_layers: int) -> PagedStep:
        """A sequence that decodes, in blocks 6, 1, 4, ..., and another's prompt after a prefix."""
        cache = KVCache(
            [LayerShape(KV_HEADS, DIM, DIM)] * num_layers, num_blocks=9, block_size=BLOCK,
            dtype=self._dtype, device=torch.device("cpu"),
        )  # fmt: skip
        for keys, values in zip(cache.keys, cache.values, strict=True):
            keys.copy_(self._kept[0])
            values.copy_(self._kept[1])
        decode = torch.tensor([[6, 1, 4, 0, 2]])
        prompt = torch.tensor([[5, 3, 8, 7]])
        positions = [*range(CHUNK_END - CHUNK, CHUNK_END)]
        slots = [int(decode[0, (DECODED - 1) // BLOCK]) * BLOCK + (DECODED - 1) % BLOCK]
        slots += [int(prompt[0, at // BLOCK]) * BLOCK + at % BLOCK for at in positions]
        slots += [cache.scratch_block * BLOCK]
        group = DecodeGroup(0, 1, decode, torch.tensor([DECODED]))
        chunk = Chunk(1, 1 + CHUNK, CHUNK_END, prompt)
        return PagedStep(cache, torch.tensor(slots), [group], [chunk])
