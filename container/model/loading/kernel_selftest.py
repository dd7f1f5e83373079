"""The CPU kernels' self-test: each kernel must be as accurate as PyTorch before it serves.

It covers both dtypes, random tensors of sizes that no model has, and all forms of attention: a
decode beside a prompt's chunk, with and without a window, head norms and sinks. Kernels and PyTorch
compute in a dtype; both are compared with PyTorch in the exact format, on the same numbers.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from container.model.attention.metadata import (
    AttentionMetadata,
    AttentionParams,
    Chunk,
    DecodeGroup,
)
from container.model.attention.unpadded import attend_within, spans_of
from container.model.kernels.cpu import DTYPES, LANES, Kernels
from container.model.kv_cache.cache import KVCache, LayerShape
from container.model.layers.cpu_decoder import DecoderStack
from container.model.layers.cpu_encoder import EncoderStack
from container.model.layers.cpu_layer_ops import CpuLayerOps
from container.model.layers.cpu_linear import CpuLinear
from container.model.layers.decoder_layer import FusedDecoderLayer
from container.model.layers.encoder_layer import EncoderParts
from container.model.layers.int8_linear import quantized
from container.model.layers.layer_ops import LayerOps, LayerSpec
from container.model.layers.linear import FastLinear, PlainLinear
from container.model.layers.quantized_weight import quantized_to_int4
from container.model.reference_check import EXACT_DTYPE, measure

# Beyond PyTorch's own error: its operations round in another number of places.
ALLOWANCE = 2.0
HIDDEN, WIDTH, HEADS, KV_HEADS, DIM, BLOCK = 48, 80, 6, 2, 32, 5
DECODED, CHUNK, CHUNK_END = 23, 7, 18
ROWS = 1 + CHUNK + 1  # a decode, a chunk, and one row of padding
DECODE_BLOCKS, PROMPT_BLOCKS = [6, 1, 4, 0, 2], [5, 3, 8, 7]
LENGTHS = 1, 33, 40  # of texts; keys are transposed for 32 rows at a time
FEW_INPUTS = 16  # of a group of int4 weights
ATTN_WIDTH, QKV = HEADS * DIM, (HEADS + 2 * KV_HEADS) * DIM

Results = list[torch.Tensor]


@torch.inference_mode()
def check(kernels: Kernels) -> None:
    """Compare the kernels with PyTorch. Raises OSError that names the difference."""
    _check_logits(kernels)
    for dtype in DTYPES:
        for window, head_norm, sinks in itertools.product((None, 6), (False, True), (False, True)):
            run = partial(_Trial.layer_ops, window=window, head_norm=head_norm, sinks=sinks)
            _compare(kernels, dtype, run)
        if kernels.supports_gemm:
            for quantize in (None, "int8", "int4"):
                _compare(kernels, dtype, partial(_Trial.gemm, quantize=quantize))
                _compare(kernels, dtype, partial(_Trial.stack, quantize=quantize))
            for dim in (2 * LANES, 3 * LANES):
                _compare(kernels, dtype, partial(_Trial.encoder, dim=dim))


def _compare(
    kernels: Kernels,
    dtype: torch.dtype,
    run: "partial[Results]",  # of a method of _Trial
) -> None:
    """Run with kernels, with PyTorch, and exactly, on the same numbers. Raises OSError."""
    served = run(_Trial(kernels, dtype, dtype))
    own = run(_Trial(None, dtype, dtype))
    exact = run(_Trial(None, dtype, EXACT_DTYPE[dtype]))
    for right, plain, got in zip(exact, own, served, strict=True):
        accuracy = measure(right.flatten(0, -2), plain.flatten(0, -2), got.flatten(0, -2), dtype)
        if not accuracy.is_within(ALLOWANCE):
            part = f"{run.func.__name__} in {dtype}"
            raise OSError(f"self-test failed: the kernels' {part} is off by {accuracy}")


def _check_logits(kernels: Kernels) -> None:
    rows = torch.randint(99, (5, 333), generator=torch.Generator().manual_seed(0)).float()
    if not torch.equal(kernels.argmax(rows), rows.argmax(-1)):
        raise OSError("self-test failed: argmax differs from PyTorch's")
    rows /= 9
    if not torch.allclose(kernels.log_sum_exp(rows), rows.logsumexp(-1)):
        raise OSError("self-test failed: log_sum_exp differs from PyTorch's")


class _Trial:
    """Computes with kernels, or with PyTorch without them; each method returns its results.

    All trials of one dtype have the same random numbers, which `dtype` holds exactly, and compute
    with them in `compute`.
    """

    def __init__(self, kernels: Kernels | None, dtype: torch.dtype, compute: torch.dtype) -> None:
        self._kernels = kernels
        self._dtype, self._compute = dtype, compute
        self._generator = torch.Generator().manual_seed(0)
        self._cos_sin = self._random(1, ROWS, DIM), self._random(1, ROWS, DIM)
        self._cached = [self._random(10 * KV_HEADS, BLOCK, DIM) for _ in range(2)]

    def layer_ops(self, window: int | None, *, head_norm: bool, sinks: bool) -> Results:
        """Run the ops between a layer's GEMMs."""
        spec = self._spec(0, window, head_norm=head_norm, sinks=sinks)
        x, residual = self._random(ROWS, HIDDEN), self._random(ROWS, HIDDEN)
        qkv, gate_up = self._random(ROWS, QKV), self._random(ROWS, 2 * WIDTH)
        ops = LayerOps(spec) if self._kernels is None else CpuLayerOps(spec, self._kernels)
        step = self._step(num_layers=1)
        return [
            ops.input_norm(x, step).clone(),
            ops.attention(qkv, self._cos_sin, step).clone(),
            *(tensor.clone() for tensor in ops.add_post_attention_norm(x, residual.clone(), step)),
            ops.act_and_mul(gate_up, step).clone(),
            ops.add_residual(x, residual.clone(), step),
            *step.cache.keys,
            *step.cache.values,
        ]

    def gemm(self, quantize: str | None) -> Results:
        """Multiply with outputs, rows and inputs that are no multiples of the tile sizes."""
        inputs = 208 if quantize == "int4" else 198
        weight, bias = self._random(115, inputs), self._random(115)
        rows = self._random(67, inputs)
        results = []
        for fp32_out in (False, True):
            product = self._linear(weight, bias, quantize, fp32_out=fp32_out)
            one_by_one = torch.cat([product(row).clone() for row in rows.split(1)])
            together = product(rows)
            if self._kernels is not None and not torch.equal(together, one_by_one):
                raise OSError("self-test failed: a row's bits depend on the number of rows")
            results += [together, one_by_one]
        return results

    def stack(self, quantize: str | None) -> Results:
        """Run two decoder layers, with kernels in one call."""
        layers = [self._layer(index, quantize) for index in range(2)]
        x, results = self._random(1, ROWS, HIDDEN), []
        run = _one_by_one(layers)
        if self._kernels is not None:
            for layer in layers:
                layer.fuse(self._kernels)
            run = DecoderStack(layers, self._kernels)
        # Some processors leave a step with a chunk to torch.
        for step in (self._step(num_layers=2), self._decode_step(num_layers=2)):
            rows = len(step.slot_mapping)
            cos, sin = (part[:, :rows] for part in self._cos_sin)
            out = run(x[:, :rows], position_embeddings=(cos, sin), step=step)
            results += [out, *step.cache.keys, *step.cache.values]
        return results

    def encoder(self, dim: int) -> Results:
        """Run an encoder layer, with kernels in one call."""
        parts = self._encoder_layer(dim)
        x = self._random(1, sum(LENGTHS), 2 * dim)
        spans = spans_of(list(LENGTHS))
        if self._kernels is not None:
            return [EncoderStack([parts], self._kernels)(x, spans=spans)]
        rows = x[0]
        q, k, v = (
            part(rows).view(len(rows), -1, dim).transpose(0, 1)
            for part in (parts.query, parts.key, parts.value)
        )
        attended = attend_within(spans, q, k, v, dim**-0.5).view(len(rows), -1)
        rows = parts.norms[0](rows + parts.dense(attended))
        return [parts.norms[1](rows + parts.down(nn.functional.gelu(parts.up(rows))))]

    def _encoder_layer(self, dim: int) -> EncoderParts:
        def linear(outputs: int, inputs: int) -> nn.Linear:
            layer = nn.Linear(1, 1)
            layer.weight = nn.Parameter(self._random(outputs, inputs) / 16, requires_grad=False)
            layer.bias = nn.Parameter(self._random(outputs), requires_grad=False)
            layer.in_features, layer.out_features = inputs, outputs
            return layer

        hidden, width = 2 * dim, 2 * dim + LANES
        q, k, v, dense = (linear(hidden, hidden) for _ in range(4))
        norms = (
            nn.LayerNorm(hidden, dtype=self._compute), nn.LayerNorm(hidden, dtype=self._compute)
        )  # fmt: skip
        return EncoderParts(
            dim, q, k, v, dense, linear(width, hidden), linear(hidden, width), norms
        )

    def _linear(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        quantize: str | None,
        *,
        fp32_out: bool = False,
    ) -> FastLinear:
        if self._kernels is None:
            return self._plain(weight, bias, quantize)
        if quantize == "int4":
            weight = quantized_to_int4(weight, FEW_INPUTS)
        is_int8 = quantize == "int8"
        return CpuLinear(weight, bias, self._kernels, int8_weights=is_int8, fp32_out=fp32_out)

    def _plain(
        self, weight: torch.Tensor, bias: torch.Tensor | None, quantize: str | None
    ) -> FastLinear:
        """Make a layer from the numbers that a quantized weight stands for, in float32 or more."""
        if quantize is None:
            return PlainLinear(weight, bias)
        stored = weight.to(self._dtype)  # quantization begins with the numbers of this dtype
        if quantize == "int8":
            numbers, scales = quantized(stored)
            values = numbers * scales[:, None]
        else:
            values = quantized_to_int4(stored, FEW_INPUTS).dequantized(torch.float32)
        return _PromotedLinear(values, bias, self._compute)

    def _layer(self, index: int, quantize: str | None) -> FusedDecoderLayer:
        shapes = (QKV, HIDDEN), (HIDDEN, ATTN_WIDTH), (2 * WIDTH, HIDDEN), (HIDDEN, WIDTH)
        qkv, o, gate_up, down = (
            self._linear(self._random(*shape) / 8, None, quantize) for shape in shapes
        )
        return FusedDecoderLayer(self._spec(index, None, head_norm=True), (qkv, o, gate_up, down))

    def _spec(
        self, index: int, window: int | None, *, head_norm: bool, sinks: bool = False
    ) -> LayerSpec:
        norms = (self._random(HIDDEN), 1e-6), (self._random(HIDDEN), 1e-6)
        heads = (self._random(HEADS + KV_HEADS, DIM), 1e-6) if head_norm else None
        act = nn.functional.silu
        params = AttentionParams(0.2, window, sinks=self._random(HEADS) * 2 if sinks else None)
        return LayerSpec(index, HEADS, KV_HEADS, DIM, params, norms, heads, act)

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator).to(self._dtype).to(self._compute)

    def _step(self, *, num_layers: int) -> AttentionMetadata:
        """Create a step: one sequence decodes, and a chunk of another's prompt follows a prefix."""
        cache = self._cache(num_layers)
        positions = [*range(CHUNK_END - CHUNK, CHUNK_END)]
        slots = [_slot(DECODE_BLOCKS, DECODED - 1), *(_slot(PROMPT_BLOCKS, at) for at in positions)]
        slots += [cache.scratch_block * BLOCK]
        group = DecodeGroup(0, 1, torch.tensor([DECODE_BLOCKS]), torch.tensor([DECODED]))
        chunk = Chunk(1, 1 + CHUNK, CHUNK_END, torch.tensor([PROMPT_BLOCKS]))
        return AttentionMetadata(cache, torch.tensor(slots), [group], [chunk])

    def _decode_step(self, *, num_layers: int) -> AttentionMetadata:
        """Create a step in which both sequences decode, beside a row of padding."""
        cache = self._cache(num_layers)
        slots = [_slot(DECODE_BLOCKS, DECODED - 1), _slot(PROMPT_BLOCKS, CHUNK_END - 1)]
        slots += [cache.scratch_block * BLOCK]
        blocks = torch.tensor([DECODE_BLOCKS, [*PROMPT_BLOCKS, 0]])
        group = DecodeGroup(0, 2, blocks, torch.tensor([DECODED, CHUNK_END]))
        return AttentionMetadata(cache, torch.tensor(slots), [group], [])

    def _cache(self, num_layers: int) -> KVCache:
        cache = KVCache(
            [LayerShape(KV_HEADS, DIM, DIM)] * num_layers, num_blocks=9, block_size=BLOCK,
            dtype=self._compute, device=torch.device("cpu"),
        )  # fmt: skip
        for keys, values in zip(cache.keys, cache.values, strict=True):
            keys.copy_(self._cached[0])
            values.copy_(self._cached[1])
        return cache


class _PromotedLinear(FastLinear):
    """A linear layer with weights in more bits than its rows."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight, bias)
        self._compute_dtype = torch.promote_types(weight.dtype, dtype)
        self._weight, self._dtype = weight.to(self._compute_dtype), dtype

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply [..., in_features] to [..., out_features] of the rows' dtype."""
        bias = None if self.bias is None else self.bias.to(self._compute_dtype)
        return nn.functional.linear(rows.to(self._compute_dtype), self._weight, bias).to(
            self._dtype
        )


def _one_by_one(layers: list[FusedDecoderLayer]) -> Callable[..., torch.Tensor]:
    def run(x: torch.Tensor, **step: Any) -> torch.Tensor:
        for layer in layers:
            x = layer(x, **step)
        return x

    return run


def _slot(blocks: list[int], position: int) -> int:
    return blocks[position // BLOCK] * BLOCK + position % BLOCK
