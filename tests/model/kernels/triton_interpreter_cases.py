"""The kernels in Triton against torch's operations; to be run by name.

On a machine with a GPU it runs them: `pytest tests/model/kernels/triton_interpreter_cases.py`. With
TRITON_INTERPRET=1 Triton's interpreter does, on the CPU and in numpy, which is what
test_triton_kernels.py asks for. The interpreter has no bfloat16, so it cuts off what it should
round; float16 is exact.
"""

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch

from container.engine.engine import Engine
from container.messages.engine import SamplingParams
from container.model.attention.metadata import (
    AttentionMetadata,
    AttentionParams,
    Chunk,
    DecodeGroup,
)
from container.model.attention.paged import attend_cached
from container.model.attention.varlen import AttentionKernels, Kernel
from container.model.checks.check_times import CheckTimes
from container.model.checks.schedule import CheckPrompt
from container.model.execution.cuda_graphs import capture_nothing, graph_capturer
from container.model.execution.forward_pass import ForwardPass
from container.model.execution.model_runner import TorchModelRunner
from container.model.fallbacks import Fallbacks
from container.model.kernels import triton_attention, triton_layer
from container.model.kv_cache.cache import KVCache, LayerShape
from container.model.layers import decoder_layer
from container.model.layers.layer_ops import CosSin, LayerOps, LayerSpec
from container.model.layers.linear import PlainLinear
from container.model.layers.triton_layer_ops import TritonLayerOps, fits_triton
from container.model.loading import paged_conversion
from container.model.optimize import fusing
from container.model.reference_check import default_ids
from tests.support.engines import Job, engine_config, ids, run
from tests.support.models import tiny_models

IS_INTERPRETED = triton_attention.device_type() == "cpu"
HAS_GPU = not IS_INTERPRETED and torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
# How far a result may be off, as a share of the largest number.
TOLERANCE = {F32: 1e-5, F16: 2e-3, BF16: 0.02}
BLOCK_SIZE = 16
# A context of one token, whole blocks, one more, ends within a block, two and three pieces.
LENS = (1, 32, 33, 90, 300, 530)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    assert IS_INTERPRETED or HAS_GPU, "set TRITON_INTERPRET=1, as there is no GPU"
    with torch.inference_mode():
        yield


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def _assert_near(got: torch.Tensor, expected: torch.Tensor, limit: float | None = None) -> None:
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    limit = TOLERANCE[expected.dtype] if limit is None else limit
    off = (got.float() - expected.float()).abs().max()
    assert off <= limit * expected.float().abs().max()


def _cache(
    kv_heads: int, dim: int, dtype: torch.dtype, *, num_blocks: int, value_dim: int = 0,
    block_size: int = BLOCK_SIZE, is_latent: bool = False,
) -> KVCache:  # fmt: skip
    """A cache of random numbers."""
    cache = KVCache(
        [LayerShape(kv_heads, dim, value_dim or dim, is_latent=is_latent)],
        num_blocks=num_blocks, block_size=block_size, dtype=dtype, device=DEVICE,
    )  # fmt: skip
    for seed, one in enumerate((cache.keys[0], cache.values[0])):
        one.copy_(_random(*one.shape, seed=seed))
    return cache


@dataclass(frozen=True)
class Case:
    """A layer's attention, and how much each of some sequences sees."""

    heads: int = 8
    kv_heads: int = 2
    dim: int = 64
    value_dim: int = 0
    dtype: torch.dtype = F32
    cache_dtype: torch.dtype | None = None
    window: int | None = None
    softcap: float | None = None
    chunk: int | None = None
    has_sinks: bool = False
    has_bias: bool = False
    is_latent: bool = False
    lens: tuple[int, ...] = LENS
    block_size: int = BLOCK_SIZE


class Decodes:
    """A row of each sequence, and the cache that it attends to."""

    def __init__(self, case: Case) -> None:
        self.case = case
        counts = [-(-length // case.block_size) for length in case.lens]
        self.cache = _cache(
            case.kv_heads, case.dim, case.cache_dtype or case.dtype, num_blocks=sum(counts),
            value_dim=case.value_dim, block_size=case.block_size, is_latent=case.is_latent,
        )  # fmt: skip
        self.query = _random(len(case.lens), case.heads, case.dim, seed=3).to(case.dtype)
        order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(4))
        # Wider than any sequence needs.
        self.tables = torch.full((len(counts), max(counts) + 3), self.cache.scratch_block)
        for row, table in zip(self.tables, order.split(counts), strict=True):
            row[: len(table)] = table
        self.tables = self.tables.to(DEVICE)
        self.lens = torch.tensor(case.lens, device=DEVICE)

        self.attn_params = AttentionParams(
            case.dim**-0.5, case.window, case.softcap, case.heads, case.chunk,
            _random(case.heads, seed=5).to(case.dtype) * 3 if case.has_sinks else None,
            _random(case.heads, max(case.lens), seed=6).to(case.dtype) if case.has_bias else None,
        )  # fmt: skip

    def expected(self) -> torch.Tensor:
        """Return the reference's output."""
        case = self.case
        group = DecodeGroup(0, len(self.lens), self.tables, self.lens)
        # Only the shapes of these count.
        keys = self.query[:, : case.kv_heads]
        values = keys.new_empty(*keys.shape[:2], case.value_dim or case.dim)
        step = AttentionMetadata(self.cache, self.lens, [group], [])
        return attend_cached(step, 0, self.query, keys, values, self.attn_params)

    def got(self, rows: slice = slice(None), width: int | None = None) -> torch.Tensor:
        """Return the kernels' output for some rows, with a table of this many blocks."""
        return triton_attention.decode_attention(
            self.query[rows], self.cache.keys[0], self.cache.values[0],
            self.tables[rows].int()[:, :width], self.lens[rows].int(),
            kv_heads=self.case.kv_heads, scale=self.case.dim**-0.5,
            window=self.case.window, softcap=self.case.softcap, chunk=self.case.chunk,
            sinks=self.attn_params.sinks,
            key_bias=self.attn_params.key_bias,
            is_latent=self.case.is_latent,
        )  # fmt: skip

    def spoil_what_is_hidden(self) -> None:
        """Make NaN of all numbers in the cache that no row may see."""
        size = self.case.block_size
        is_visible = torch.zeros(self.cache.scratch_block + 1, size, dtype=torch.bool)
        for table, length in zip(self.tables.cpu(), self.case.lens, strict=True):
            first = max(0, self.attn_params.first_visible(length - 1))
            positions = torch.arange(first, length)
            is_visible[table[positions // size], positions % size] = True
        is_hidden = ~is_visible.repeat_interleave(self.case.kv_heads, 0).to(DEVICE)
        self.cache.keys[0][is_hidden] = float("nan")
        self.cache.values[0][is_hidden] = float("nan")


@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(heads=4, kv_heads=4, dim=80),
        Case(heads=7, kv_heads=1, dim=128, dtype=F16),
        Case(heads=8, kv_heads=1, dtype=BF16),
        Case(heads=14, kv_heads=2, dtype=F16, softcap=2.0),
        Case(heads=4, kv_heads=1, dim=96, dtype=BF16, window=100),
        Case(heads=2, kv_heads=2, dim=128, window=1),
        Case(heads=2, kv_heads=1, dim=80, window=300, softcap=1.0),
        Case(heads=2, kv_heads=1, dim=192, value_dim=128, lens=(5, 270)),
        Case(heads=2, kv_heads=1, dim=256, dtype=F16, lens=(5, 270)),
        Case(heads=34, kv_heads=2, dim=16, lens=(5, 270)),
        Case(heads=2, kv_heads=1, dim=20, block_size=7, lens=(8, 270), window=33),
        Case(heads=6, kv_heads=2, has_sinks=True),
        Case(heads=4, kv_heads=1, dtype=BF16, window=100, has_sinks=True),
        Case(heads=4, kv_heads=2, chunk=32),
        Case(heads=4, kv_heads=2, dtype=F16, chunk=90, has_sinks=True, softcap=2.0),
        Case(heads=6, kv_heads=6, dim=32, has_bias=True),
        Case(heads=6, kv_heads=2, dtype=F16, has_bias=True, has_sinks=True),
        Case(heads=5, kv_heads=1, dim=40, value_dim=24, is_latent=True),
        Case(
            heads=20, kv_heads=1, dim=576, value_dim=512, dtype=BF16, is_latent=True, lens=(5, 270)
        ),
        Case(
            heads=6,
            kv_heads=2,
            dim=24,
            value_dim=16,
            dtype=F16,
            is_latent=True,
            softcap=2.0,
            window=100,
        ),
    ],
    ids=str,
)
def test_decodes_attend_as_the_reference_does(case: Case) -> None:
    decodes = Decodes(case)
    expected = decodes.expected()
    decodes.spoil_what_is_hidden()
    _assert_near(decodes.got(), expected)


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("cache_dtype", [E4M3, E5M2], ids=str)
def test_decodes_read_a_cache_of_eight_bits(dtype: torch.dtype, cache_dtype: torch.dtype) -> None:
    decodes = Decodes(Case(dtype=dtype, cache_dtype=cache_dtype, lens=(1, 50, 280)))
    _assert_near(decodes.got(), decodes.expected())
    latents = Case(
        dtype=dtype, cache_dtype=cache_dtype, lens=(1, 50), kv_heads=1, dim=80, value_dim=64,
        is_latent=True,
    )  # fmt: skip
    _assert_near(Decodes(latents).got(), Decodes(latents).expected())


if IS_INTERPRETED:  # not every GPU converts this format itself

    @pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
    def test_decodes_read_eight_bits_as_triton_does(
        dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        decodes = Decodes(Case(dtype=dtype, cache_dtype=E4M3, lens=(1, 50, 280)))
        expected = decodes.got()
        monkeypatch.setattr(triton_attention, "_read_as", lambda cache: 0)
        assert torch.equal(decodes.got(), expected)


@pytest.mark.parametrize("window", [None, 600])
def test_a_long_context_has_longer_splits(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_attention, "PIECE", 32)
    monkeypatch.setattr(triton_attention, "ROW_PROGRAMS", 1)
    most = 16 * 32
    decodes = Decodes(Case(lens=(most, most + 1, 700, 40), window=window))
    _assert_near(decodes.got(), decodes.expected())


@pytest.mark.parametrize(("dtype", "window"), [(F32, None), (BF16, 290)], ids=str)
def test_a_row_has_the_same_bits_alone_and_among_others(
    dtype: torch.dtype, window: int | None
) -> None:
    decodes = Decodes(Case(dtype=dtype, window=window))
    among_others = decodes.got()
    for row, length in enumerate(LENS):
        alone = decodes.got(slice(row, row + 1), width=-(-length // BLOCK_SIZE))
        assert torch.equal(alone[0], among_others[row])


@pytest.mark.parametrize("cache_dtype", [E4M3, E5M2], ids=str)
def test_all_numbers_of_eight_bits_are_read_as_they_are(cache_dtype: torch.dtype) -> None:
    decodes = Decodes(Case(heads=1, kv_heads=1, dim=256, cache_dtype=cache_dtype, lens=(1,)))
    numbers = torch.arange(256, dtype=torch.uint8, device=DEVICE).view(cache_dtype).float()
    # Infinities, and all NaN but one, are never written.
    numbers = torch.where(numbers.isfinite(), numbers, 0.0)
    numbers[127] = float("nan")
    decodes.cache.keys[0].copy_(torch.zeros_like(decodes.query[0, 0]))
    # With a context of one token the result is its values.
    decodes.cache.values[0].copy_(numbers)
    assert torch.equal(decodes.got()[0, 0].nan_to_num(1e6), numbers.nan_to_num(1e6))


def _spec(
    dtype: torch.dtype, *, dim: int = 64, heads: int = 6, kv_heads: int = 2, hidden: int = 48,
    has_norm: bool = False, attn_params: AttentionParams | None = None,
) -> LayerSpec:  # fmt: skip
    norm = _random(hidden, seed=7).to(dtype), 1e-6
    of_heads = _random(heads + kv_heads, dim, seed=8).to(dtype), 1e-6
    return LayerSpec(
        0, heads, kv_heads, dim, attn_params or AttentionParams(dim**-0.5), (norm, norm),
        of_heads if has_norm else None, torch.nn.functional.silu,
    )  # fmt: skip


def _cos_sin(count: int, dim: int, dtype: torch.dtype) -> CosSin:
    angle = _random(1, count, dim // 2, seed=9).repeat(1, 1, 2)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _qkv(count: int, spec: LayerSpec, dtype: torch.dtype) -> torch.Tensor:
    return _random(count, (spec.heads + 2 * spec.kv_heads) * spec.dim, seed=5).to(dtype)


def _rope_and_store_kv(
    spec: LayerSpec, qkv: torch.Tensor, cos_sin: CosSin, slots: torch.Tensor, cache: KVCache
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return triton_layer.rope_and_store_kv(
        qkv, cos_sin[0][0], cos_sin[1][0], slots, cache.keys[0], cache.values[0],
        heads=spec.heads, kv_heads=spec.kv_heads, block_size=cache.block_size,
        scale=spec.attn_params.scale, head_norm=spec.head_norm,
    )  # fmt: skip


def _assert_same_numbers(got: KVCache, expected: KVCache) -> None:
    for one, other in ((got.keys, expected.keys), (got.values, expected.values)):
        assert torch.equal(one[0].float().nan_to_num(1e6), other[0].float().nan_to_num(1e6))


@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize(
    ("dtype", "cache_dtype", "dim", "heads", "kv_heads"),
    [
        (F32, F32, 64, 6, 2),
        (F32, F32, 80, 4, 4),
        (F16, F16, 128, 7, 1),
        (BF16, BF16, 64, 8, 1),
        (BF16, E4M3, 128, 6, 2),
        (F32, E5M2, 64, 6, 2),
    ],
)
def test_rotation_is_glues(
    dtype: torch.dtype, cache_dtype: torch.dtype, dim: int, heads: int, kv_heads: int,
    has_norm: bool,
) -> None:  # fmt: skip
    spec = _spec(dtype, dim=dim, heads=heads, kv_heads=kv_heads, has_norm=has_norm)
    slots = torch.tensor([37, 0, 15, 16, 40], device=DEVICE)
    got, expected = (_cache(kv_heads, dim, cache_dtype, num_blocks=3) for _ in range(2))
    qkv, cos_sin = _qkv(len(slots), spec, dtype), _cos_sin(len(slots), dim, dtype)
    step = AttentionMetadata(expected, slots, [], [])
    states = qkv.view(len(slots), -1, dim)
    rotated = LayerOps(spec)._rotate(states[:, :-kv_heads], cos_sin, step)
    q, k, v = _rope_and_store_kv(spec, qkv, cos_sin, slots, got)
    _assert_near(q, rotated[:, :heads])
    _assert_near(k, rotated[:, heads:])
    assert torch.equal(v, states[:, -kv_heads:])
    assert all(one.is_contiguous() for one in (q, k, v))
    # What is kept is what is returned, in the cache's format; nothing else is touched.
    expected.write(0, k, v, step.slot_rows(kv_heads))
    _assert_same_numbers(got, expected)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy tells of NaN
@pytest.mark.parametrize(
    ("cache_dtype", "dtype"), [(E4M3, F16), (E4M3, BF16), (E5M2, F16)], ids=str
)
def test_all_numbers_of_16_bits_become_torchs_of_eight(
    cache_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    spec = _spec(dtype, dim=256, heads=16, kv_heads=16)
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).short()
    numbers = bits.view(dtype).view(-1, spec.kv_heads, spec.dim).to(DEVICE)
    slots = torch.arange(len(numbers), device=DEVICE)
    got, expected = (_cache(spec.kv_heads, spec.dim, cache_dtype, num_blocks=1) for _ in range(2))
    zeros = torch.zeros_like(numbers)
    qkv = torch.cat([zeros, zeros, numbers], 1).flatten(1)
    _rope_and_store_kv(spec, qkv, _cos_sin(len(slots), spec.dim, dtype), slots, got)
    expected.write(
        0, zeros, numbers, AttentionMetadata(expected, slots, [], []).slot_rows(spec.kv_heads)
    )
    _assert_same_numbers(got, expected)


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("width", [16, 576, 1040])
def test_norms_and_gates_are_glues(dtype: torch.dtype, width: int) -> None:
    spec = _spec(dtype, hidden=width)
    x, residual = (_random(3, width, seed=seed).to(dtype) * 3 for seed in range(2))
    gate_up = _random(3, 2 * width, seed=2).to(dtype) * 10
    before = x.clone(), residual.clone()
    step = AttentionMetadata(None, torch.zeros(3, dtype=torch.long), [], [])  # type: ignore[arg-type]
    reference, ops = LayerOps(spec), TritonLayerOps(spec)
    _assert_near(ops.input_norm(x, step), reference.input_norm(x, step))
    expected = reference.add_post_attention_norm(x, residual, step)
    for one, other in zip(ops.add_post_attention_norm(x, residual, step), expected, strict=True):
        _assert_near(one, other)
    _assert_near(ops.act_and_mul(gate_up, step), reference.act_and_mul(gate_up.clone(), step))
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])


@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize(
    ("dtype", "cache_dtype", "attn_params"),
    [
        (F32, F32, AttentionParams(0.3)),
        (F32, F32, AttentionParams(0.3, window=7)),
        (F32, E4M3, AttentionParams(0.3)),
        (F16, F16, AttentionParams(0.3, softcap=5.0)),
    ],
    ids=str,
)
def test_a_steps_attention_is_glues(
    dtype: torch.dtype, cache_dtype: torch.dtype, attn_params: AttentionParams, has_norm: bool
) -> None:
    spec = _spec(dtype, has_norm=has_norm, attn_params=replace(attn_params, heads=6))

    def ints(*values: int | list[int]) -> torch.Tensor:
        return torch.tensor(values, device=DEVICE)

    # Two decodes, five tokens within a prompt, a whole prompt of five, and padding.
    group = DecodeGroup(0, 2, ints([2, 0], [1, 6]), ints(20, 9))
    chunks = [Chunk(2, 7, 22, ints([4, 5])), Chunk(7, 12, 5, ints([3]))]
    slots = ints(3, 24, *range(81, 86), *range(48, 53), 96)
    qkv, cos_sin = _qkv(len(slots), spec, dtype), _cos_sin(len(slots), spec.dim, dtype)
    expected, got = (
        ops.attention(
            qkv.clone(),
            cos_sin,
            AttentionMetadata(
                _cache(2, spec.dim, cache_dtype, num_blocks=6), slots, [group], chunks
            ),
        )
        for ops in (LayerOps(spec), TritonLayerOps(spec))
    )
    # What differs in its last bit may become another number of eight bits.
    _assert_near(got, expected, 0.02 if cache_dtype == E4M3 else None)


def test_layers_are_served_that_the_kernels_can_do() -> None:
    spec = _spec(F32, has_norm=True)
    assert fits_triton(spec)
    assert fits_triton(
        replace(spec, attn_params=AttentionParams(1.0, window=4, softcap=5.0), head_norm=None)
    )
    assert not fits_triton(replace(spec, act=torch.nn.functional.gelu))
    assert not fits_triton(replace(spec, dim=512))
    assert not fits_triton(replace(spec, dim=25))
    assert not fits_triton(_spec(torch.float64))
    for weight in (torch.ones(48, device="meta"), torch.ones(96, device=DEVICE)[::2]):
        assert not fits_triton(replace(spec, norms=((weight, 1e-6),) * 2))


def launch_all(case: Case, rows: int) -> None:
    """Launch all kernels for a step; with more rows the tables are wider."""
    decodes = Decodes(replace(case, lens=(7 * rows,) * rows))
    decodes.got()
    dtype = case.dtype
    spec = _spec(dtype, dim=case.dim, has_norm=True, hidden=4096)
    slots = torch.arange(rows, device=DEVICE)
    cos_sin = _cos_sin(rows, case.dim, dtype)
    _rope_and_store_kv(spec, _qkv(rows, spec, dtype), cos_sin, slots, decodes.cache)
    x = _random(rows, 4096, seed=0).to(dtype)
    triton_layer.add_norm(x, None, *spec.norms[0])
    triton_layer.add_norm(x, x, *spec.norms[0])
    triton_layer.silu_times(x)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral"])
def test_an_engine_with_all_kernels_equals_generate(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusing, "_ops_choices", lambda *_: [TritonLayerOps])
    module = copy.deepcopy(tiny_models.make(name)).to(DEVICE)
    prompt, fallbacks = CheckPrompt(default_ids(module.config)), Fallbacks()
    trial = paged_conversion.convert(module, prompt, DEVICE, fallbacks, CheckTimes())
    fusing.fuse_decoder_layers(
        module, trial.layer_attn_params, trial, PlainLinear, PlainLinear, None
    )
    fused = [one for one in module.modules() if isinstance(one, decoder_layer.FusedDecoderLayer)]
    assert [type(one.ops) for one in fused] == [TritonLayerOps] * module.config.num_hidden_layers
    config = engine_config(max_batch_tokens=24, block_size=BLOCK_SIZE)
    cache = KVCache(
        trial.shapes, num_blocks=config.num_blocks, block_size=BLOCK_SIZE, dtype=F32, device=DEVICE
    )
    kernels = AttentionKernels(Kernel.TRITON, Kernel.REFERENCE)
    runner = TorchModelRunner(ForwardPass(module, cache, DEVICE, kernels=kernels), overlaps=True)
    record = graph_capturer() if HAS_GPU else capture_nothing
    runner.forward.capture([2, 4], 8, record, lambda _: None)
    assert runner.forward.has_graphs
    assert fallbacks.lines == ()
    rnd = random.Random(2)
    jobs = []
    for _ in range(5):
        prompt = [rnd.randrange(2, tiny_models.VOCABULARY) for _ in range(rnd.randint(1, 40))]
        jobs.append(Job(prompt, SamplingParams(rnd.randint(1, 8)), at_step=rnd.randrange(5)))
    got = run(Engine(runner, config, end_token_ids=()), jobs)
    for index, job in enumerate(jobs):
        expected = tiny_models.reference(name, tuple(job.prompt), job.params.max_new_tokens)
        assert ids(got[index]) == expected, f"request {index}"
