"""The compiled kernels against torch's operations, and what becomes of a library that is bad."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from container.model.attention.metadata import (
    AttentionMetadata,
    AttentionParams,
    Chunk,
    DecodeGroup,
)
from container.model.kernels.cpu import Kernels, argmax, log_sum_exp
from container.model.kernels.processor import library_names
from container.model.kv_cache.cache import KVCache, LayerShape
from container.model.layers.cpu_layer_ops import CpuLayerOps, fits_cpu_kernels
from container.model.layers.decoder_layer import FusedDecoderLayer
from container.model.layers.layer_ops import CosSin, LayerOps, LayerSpec
from tests.support.models import prepared, tiny_models
from tests.support.models.prepared import prepare

CPU = torch.device("cpu")
NUM_BLOCKS = 500


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def _kernels() -> Kernels:
    return prepared.cpu_kernels()


@dataclass(frozen=True)
class Shape:
    dtype: torch.dtype = torch.float32
    heads: int = 6
    kv_heads: int = 2
    dim: int = 32
    block_size: int = 4
    window: int | None = None
    has_norms: bool = False
    hidden: int = 48
    seed: int = 0


@dataclass(frozen=True)
class Piece:
    """Rows of one sequence: the last `count` of `length` positions."""

    sequence: int
    count: int
    length: int


def _spec(shape: Shape) -> LayerSpec:
    generator = torch.Generator().manual_seed(shape.seed)
    norm = torch.randn(shape.hidden, generator=generator).to(shape.dtype)
    heads = torch.rand(shape.heads + shape.kv_heads, shape.dim, generator=generator).to(shape.dtype)
    return LayerSpec(
        0, shape.heads, shape.kv_heads, shape.dim, AttentionParams(shape.dim**-0.5, shape.window),
        ((norm, 1e-6),) * 2, (heads, 1e-6) if shape.has_norms else None, torch.nn.functional.silu,
    )  # fmt: skip


def _tokens(shape: Shape, sequence: int, length: int) -> tuple[torch.Tensor, CosSin]:
    """q, k and v of a sequence's tokens, and their angles."""
    generator = torch.Generator().manual_seed(1000 * shape.seed + sequence)
    width = (shape.heads + 2 * shape.kv_heads) * shape.dim
    qkv = torch.randn(200, width, generator=generator).to(shape.dtype)
    cos_sin = torch.randn(1, 200, shape.dim // 2, generator=generator).repeat(1, 1, 2)
    cos, sin = (one[:, :length].to(shape.dtype) for one in (cos_sin.cos(), cos_sin.sin()))
    return qkv[:length], (cos, sin)


class Attention:
    """A cache, and steps over it with either form of attention."""

    def __init__(self, shape: Shape, ops: LayerOps) -> None:
        self.shape = shape
        self.ops = ops
        layer_shape = LayerShape(shape.kv_heads, shape.dim, shape.dim)
        self.cache = KVCache(
            [layer_shape], num_blocks=NUM_BLOCKS, block_size=shape.block_size,
            dtype=shape.dtype, device=CPU,
        )  # fmt: skip
        order = torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(shape.seed))
        self._free = order.tolist()
        self._tables: dict[int, list[int]] = {}

    def step(self, pieces: list[Piece], padding: int = 0) -> torch.Tensor:
        """Attend: decodes (of one row) first, then chunks."""
        size = self.shape.block_size
        groups, chunks, slots, rows, cos_sin = [], [], [], [], []
        for piece in pieces:
            table = self._tables.setdefault(piece.sequence, [])
            while len(table) * size < piece.length:
                table.append(self._free.pop())
            blocks = torch.tensor([table[: -(-piece.length // size)]])
            start, first = len(slots), piece.length - piece.count
            slots += [table[at // size] * size + at % size for at in range(first, piece.length)]
            stop = len(slots)
            if piece.count == 1:
                groups.append(DecodeGroup(start, stop, blocks, torch.tensor([piece.length])))
            else:
                chunks.append(Chunk(start, stop, piece.length, blocks))
            qkv, (cos, sin) = _tokens(self.shape, piece.sequence, piece.length)
            rows.append(qkv[first:])
            cos_sin.append((cos[:, first:], sin[:, first:]))
        slots += [self.cache.scratch_block * size] * padding
        rows.append(rows[0][:1].expand(padding, -1))
        cos_sin.append(tuple(one[:, :1].expand(-1, padding, -1) for one in cos_sin[0]))
        cos, sin = (torch.cat([pair[i] for pair in cos_sin], 1) for i in range(2))
        step = AttentionMetadata(self.cache, torch.tensor(slots), groups, chunks)
        return self.ops.attention(torch.cat(rows), (cos, sin), step).clone()


def _fused(shape: Shape) -> Attention:
    return Attention(shape, CpuLayerOps(_spec(shape), _kernels()))


def _assert_near(got: torch.Tensor, expected: torch.Tensor) -> None:
    limit = prepared.TOLERANCE[expected.dtype]
    scale = expected.float().abs().max()
    assert (got.float() - expected.float()).abs().max() <= limit * scale


shapes = st.builds(
    Shape,
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    heads=st.sampled_from([12, 24]),
    kv_heads=st.sampled_from([1, 2, 3, 4, 12]),
    dim=st.sampled_from([16, 48, 64, 80, 128, 256]),
    block_size=st.sampled_from([1, 3, 16, 32]),
    window=st.sampled_from([None, 1, 7, 40]),
    has_norms=st.booleans(),
    seed=st.integers(0, 99),
)


@settings(max_examples=40, deadline=None)
@given(shape=shapes, lengths=st.lists(st.integers(1, 80), min_size=1, max_size=3), data=st.data())
def test_attention_is_torchs(shape: Shape, lengths: list[int], data: st.DataObject) -> None:
    forms = [Attention(shape, LayerOps(_spec(shape))), _fused(shape)]
    cuts = [data.draw(st.integers(1, length)) for length in lengths]
    steps = [
        [Piece(i, cut, cut) for i, cut in enumerate(cuts) if cut > 1],
        [Piece(i, 1, cut + 1) for i, cut in enumerate(cuts)],
        [Piece(i, n, cut + 1 + n) for i, (cut, n) in enumerate(zip(cuts, lengths, strict=True))
         if n > 1],
    ]  # fmt: skip
    for pieces in filter(None, steps):
        expected, got = (form.step(pieces, padding=2) for form in forms)
        _assert_near(got, expected)
        assert not got[-2:].any()
    for name in ("keys", "values"):
        expected, got = (getattr(form.cache, name)[0] for form in forms)
        _assert_near(got[: -shape.kv_heads], expected[: -shape.kv_heads])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [16, 48, 576, 1040])
@pytest.mark.parametrize("rows", [1, 2, 5, 67])
def test_norms_and_gates_are_torchs(dtype: torch.dtype, width: int, rows: int) -> None:
    spec = _spec(Shape(dtype=dtype, hidden=width))
    generator = torch.Generator().manual_seed(rows)
    x, residual = (torch.randn(rows, width, generator=generator).to(dtype) * 3 for _ in range(2))
    gate_up = torch.randn(rows, 2 * width, generator=generator).to(dtype) * 20
    step = AttentionMetadata(None, torch.zeros(rows, dtype=torch.long), [], [])  # type: ignore[arg-type]
    for_torch, fused = LayerOps(spec), CpuLayerOps(spec, _kernels())
    _assert_near(fused.input_norm(x, step), for_torch.input_norm(x, step))
    got = fused.add_post_attention_norm(x, residual.clone(), step)
    for one, expected in zip(
        got, for_torch.add_post_attention_norm(x, residual.clone(), step), strict=True
    ):
        _assert_near(one, expected)
    _assert_near(fused.act_and_mul(gate_up, step), for_torch.act_and_mul(gate_up, step))
    assert torch.equal(
        fused.add_residual(x, residual.clone(), step),
        for_torch.add_residual(x, residual.clone(), step),
    )


@pytest.mark.parametrize("width", [1, 15, 16, 333, 49152])
@pytest.mark.parametrize("rows", [1, 4, 9])
def test_the_first_of_the_largest_is_chosen(rows: int, width: int) -> None:
    original = torch.randint(
        50, (rows, width), generator=torch.Generator().manual_seed(width)
    ).float()
    original[0] = float("-inf")
    original[-1, width // 2] = 60
    assert torch.equal(argmax(original, _kernels()), original.argmax(-1))


@pytest.mark.parametrize("width", [1, 15, 16, 333, 49152])
@pytest.mark.parametrize("rows", [1, 9])
def test_sums_of_logits_are_torchs(rows: int, width: int) -> None:
    original = torch.randn(rows, width, generator=torch.Generator().manual_seed(width)) * 30
    original[-1, width // 2] = 1000
    original[:, : width // 3] = float("-inf")
    got = log_sum_exp(original, _kernels())
    assert torch.allclose(got, original.logsumexp(-1), atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, 9])
def test_a_rows_bits_depend_neither_on_other_rows_nor_on_chunks(
    dtype: torch.dtype, window: int | None
) -> None:
    shape = Shape(dtype, window=window)
    whole = _fused(shape).step([Piece(0, 150, 150)])
    chunks = [[7] * 20 + [10], [64, 66, 20], [2, 148]]
    # A single token is a decode, which rounds as a prompt does only where one function serves both.
    decodes = [[1] * 150, [7] * 21 + [3]] if library_names()[-1].startswith("avx512") else []
    for sizes in chunks + decodes:
        one, done, rows = _fused(shape), 0, []
        for size in sizes:
            done += size
            others = [Piece(number, 1, 1 + done % 9) for number in (1, 2)]
            piece = Piece(0, size, done)
            got = one.step([*others, piece] if size > 1 else [piece, *others])
            rows.append(got[-size:] if size > 1 else got[:1])
        assert torch.equal(torch.cat(rows), whole), sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    shape = Shape(dtype, heads=12, kv_heads=3, dim=64, block_size=16, hidden=1024)
    pieces = [Piece(i, 150, 150) for i in range(3)]
    x = torch.randn(300, 1024).to(dtype)
    step = AttentionMetadata(None, torch.zeros(300, dtype=torch.long), [], [])  # type: ignore[arg-type]
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            attention = _fused(shape)
            rest = attention.ops.input_norm(x, step), attention.ops.act_and_mul(x, step)
            results.append([attention.step(pieces), *(one.clone() for one in rest)])
    finally:
        torch.set_num_threads(before)
    for got in results[1:]:
        assert all(map(torch.equal, got, results[0]))


def test_padding_is_not_read() -> None:
    """A cache block of another sequence may hold anything, even what is no number."""
    shape = Shape()
    clean, dirty = _fused(shape), _fused(shape)
    for one in (*dirty.cache.keys, *dirty.cache.values):
        one.fill_(float("nan"))
    pieces = [Piece(0, 1, 1), Piece(1, 7, 7), Piece(2, 18, 18)]
    assert torch.equal(dirty.step(pieces), clean.step(pieces))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral"])
def test_models_of_the_llama_family_use_the_kernels(name: str, dtype: torch.dtype) -> None:
    loaded = prepare(tiny_models.make(name, dtype), dtype, CPU)
    layers = [module for module in loaded.module.modules() if isinstance(module, FusedDecoderLayer)]
    # Layers are replaced where the processor has packed products in the format.
    assert bool(layers) == prepared.linears().packs(dtype)
    assert all(isinstance(layer.ops, CpuLayerOps) for layer in layers)


def test_unsupported_shapes_use_torch() -> None:
    assert fits_cpu_kernels(_spec(Shape()))
    for shape in (Shape(torch.float16), Shape(dim=24), Shape(dim=272), Shape(hidden=40)):
        assert not fits_cpu_kernels(_spec(shape))
