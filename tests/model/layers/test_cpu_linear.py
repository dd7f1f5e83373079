"""The kernels' products, and whole stacks of layers, against torch's and against each other."""

import copy
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from container.engine.engine import Engine
from container.messages.engine import SamplingParams
from container.model.attention.metadata import AttentionMetadata
from container.model.execution.factory import make_runner
from container.model.kernels import build
from container.model.kernels.cpu import Kernels
from container.model.kernels.processor import library_names
from container.model.layers import cpu_linear
from container.model.layers.cpu_decoder import DecoderStack
from container.model.layers.cpu_linear import CpuLinear, LinearFactory
from container.model.layers.decoder_layer import FusedDecoderLayer
from container.model.layers.int8_linear import quantized
from container.model.layers.layer_ops import CosSin
from container.model.layers.linear import PackedLinear
from container.model.layers.quantized_weight import QuantizedWeight, quantized_to_int4
from container.model.loaded_model import LoadedModel
from container.model.optimize.stacking import _is_chain
from tests.support.engines import Job, engine_config, ids, run
from tests.support.models import prepared, tiny_models
from tests.support.models.prepared import prepare

CPU = torch.device("cpu")
FORMATS = [torch.float32, torch.bfloat16]
MULTIPLIED = [dtype for dtype in FORMATS if prepared.linears().uses_kernels(dtype)]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def _kernels() -> Kernels:
    return prepared.cpu_kernels()


def _without_tiles() -> LinearFactory:
    """Layers by the kernels that do not use AMX."""
    return LinearFactory(Kernels(build.library(library_names()[-1])))


def _need(dtype: torch.dtype) -> None:
    if not prepared.linears().uses_kernels(dtype):
        pytest.skip("this processor leaves the format to torch")


def _assert_near(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    limit = prepared.TOLERANCE[dtype] * expected.abs().max()
    assert (got.float() - expected).abs().max() <= limit


@pytest.mark.skipif(not MULTIPLIED, reason="this processor leaves products to torch")
@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(MULTIPLIED or FORMATS), st.integers(1, 200),
    st.integers(1, 320).map(lambda n: 2 * n), st.integers(1, 140), st.booleans(),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_products_are_torchs(
    dtype: torch.dtype, outputs: int, inputs: int, rows: int, int8_weights: bool, fp32_out: bool,
    has_bias: bool,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(outputs)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    bias = torch.randn(outputs, generator=generator).to(dtype) if has_bias else None
    rows_in = torch.randn(2, rows, inputs, generator=generator).to(dtype)
    exact = weight.float()
    if int8_weights:
        numbers, scales = quantized(weight)
        exact = numbers * scales[:, None]
    linear = CpuLinear(weight, bias, _kernels(), int8_weights=int8_weights, fp32_out=fp32_out)
    got = linear(rows_in)
    assert got.dtype == (torch.float32 if fp32_out else dtype)
    expected = nn.functional.linear(
        rows_in.float(), exact, bias.float() if bias is not None else None
    )
    _assert_near(got, expected, dtype)


def _groups(weight: torch.Tensor, form: str) -> QuantizedWeight:
    """Quantize to groups: of four or eight bits, or of four with the inputs' groups at random."""
    four = quantized_to_int4(weight, 8 * (1 + weight.shape[1] % 3))
    if form == "shuffled":
        generator = torch.Generator().manual_seed(0)
        groups = torch.randint(four.scales.shape[1], (weight.shape[1],), generator=generator)
        return QuantizedWeight(
            four.numbers, four.scales, four.offsets, bits=4, dtype=weight.dtype,
            group_of=groups.int(),
        )  # fmt: skip
    if form == "float32 scales":
        return QuantizedWeight(
            four.numbers, four.scales * 1.001, four.offsets * 1.001, bits=4, dtype=weight.dtype
        )
    return four.with_eight_bits() if form == "eight bits" else four


@pytest.mark.skipif(not MULTIPLIED, reason="this processor leaves products to torch")
@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(MULTIPLIED or FORMATS),
    st.sampled_from(["four bits", "float32 scales", "eight bits", "shuffled"]),
    st.integers(1, 200), st.integers(1, 16).map(lambda n: 48 * n), st.integers(1, 70),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_quantized_gemms_equal_dequantized_ones(
    dtype: torch.dtype, form: str, outputs: int, inputs: int, rows: int, fp32_out: bool,
    has_bias: bool,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(outputs)
    weight = _groups(torch.randn(outputs, inputs, generator=generator).to(dtype), form)
    bias = torch.randn(outputs, generator=generator).to(dtype) if has_bias else None
    x = torch.randn(rows, inputs, generator=generator).to(dtype)
    got = CpuLinear(weight, bias, _kernels(), fp32_out=fp32_out)(x)
    exact = weight.dequantized(torch.float32)
    assert got.dtype == (torch.float32 if fp32_out else dtype)
    expected = nn.functional.linear(x.float(), exact, None if bias is None else bias.float())
    _assert_near(got, expected, dtype)


@pytest.mark.parametrize(
    "form", ["exact", "int8", "four bits", "float32 scales", "eight bits", "shuffled"]
)
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_a_rows_bits_depend_neither_on_other_rows_nor_on_threads(
    dtype: torch.dtype, form: str
) -> None:
    _need(dtype)
    weight = torch.randn(500, 720).to(dtype)
    if form not in ("exact", "int8"):
        weight = _groups(weight, form)
    linear = CpuLinear(weight, None, _kernels(), int8_weights=form == "int8")
    rows = torch.randn(150, 720).to(dtype)
    whole = linear(rows)
    for sizes in ([1] * 150, [7] * 21 + [3], [64, 86], [149, 1]):
        assert torch.equal(torch.cat([linear(part) for part in rows.split(sizes)]), whole)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(linear(rows), whole)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 70])
def test_float32_weights_stored_in_bfloat16_give_the_same_bits(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _need(torch.float32)
    weight, x = torch.randn(100, 582).bfloat16().float(), torch.randn(rows, 582)
    small = CpuLinear(weight, None, _kernels())
    assert small.numbers.dtype == torch.bfloat16
    monkeypatch.setattr(cpu_linear, "_fits_bfloat16", lambda _: False)
    large = CpuLinear(weight, None, _kernels())
    assert large.numbers.dtype == torch.float32
    assert torch.equal(small(x), large(x))


def test_float32_weights_with_more_bits_than_bfloat16_stay_whole() -> None:
    _need(torch.float32)
    weight = torch.randn(48, 64).bfloat16().float()
    weight[17, 5] += weight[17, 5] * 2**-20
    assert CpuLinear(weight, None, _kernels()).numbers.dtype == torch.float32


def test_unsupported_gemms_use_onednn() -> None:
    fits = torch.randn(48, 64)
    assert isinstance(
        prepared.linears().linear(fits, None), CpuLinear
    ) == prepared.linears().uses_kernels(torch.float32)
    for weight in (torch.randn(48, 63), torch.randn(48, 64).half()):
        assert not cpu_linear.can_use_gemm(_kernels(), weight)
    assert isinstance(prepared.linears().linear(torch.randn(48, 63), None), PackedLinear)


def test_onednn_keeps_its_products_where_it_has_matrix_units(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("oneDNN packs no bfloat16 on this processor")
    monkeypatch.setattr(cpu_linear, "has_amx", lambda: True)
    layer = _without_tiles().linear(torch.randn(48, 64).bfloat16(), None)
    assert isinstance(layer, PackedLinear)


def test_int8_uses_our_kernels_beside_onednns_matrix_units(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu_linear, "has_amx", lambda: True)
    weight = torch.randn(48, 64).bfloat16()
    factory = _without_tiles()
    assert isinstance(factory.int8(weight, None, phase=None), CpuLinear)
    assert isinstance(factory.int4(weight, None), CpuLinear)
    assert not isinstance(factory.linear(weight, None), CpuLinear)


def _stacks(loaded: LoadedModel) -> list[DecoderStack]:
    return [module for module in loaded.module.modules() if isinstance(module, DecoderStack)]


def _engine(loaded: LoadedModel) -> Engine:
    config = engine_config(num_blocks=120, block_size=8, max_batch_tokens=48)
    return Engine(make_runner(loaded, config, end_token_ids=frozenset()), config, end_token_ids=[])


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral"])
def test_a_stack_computes_what_its_layers_compute_one_by_one(
    name: str, dtype: torch.dtype, quantize: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _need(dtype)
    loaded = prepare(tiny_models.make(name, dtype), dtype, CPU, quantize=quantize)
    [stack] = _stacks(loaded)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(2, 200, (5 + 9 * i,), generator=generator).tolist() for i in range(5)]
    jobs = [
        Job(prompt, SamplingParams(15, temperature=1.2, seed=i), at_step=2 * i)
        for i, prompt in enumerate(prompts)
    ]
    together = run(_engine(loaded), jobs)
    outputs: list[torch.Tensor] = []
    hook = stack.register_forward_hook(lambda *hook_args: outputs.append(hook_args[2].clone()))
    calls: list[int] = []
    compiled = stack._in_one_call

    def count(x: torch.Tensor, cos_sin: CosSin, step: AttentionMetadata) -> torch.Tensor:
        calls.append(x.shape[1])
        return compiled(x, cos_sin, step)

    monkeypatch.setattr(stack, "_in_one_call", count)
    run(_engine(loaded), jobs)
    assert len(calls) == len(outputs), "every step went through the kernels"
    in_one_call, outputs = outputs, []
    monkeypatch.setattr(stack, "_in_one_call", stack._one_by_one)
    one_by_one = run(_engine(loaded), jobs)
    hook.remove()
    assert len(outputs) == len(in_one_call) > 20
    assert all(map(torch.equal, outputs, in_one_call))
    assert [ids(one) for one in together.values()] == [ids(one) for one in one_by_one.values()]


def test_other_families_have_no_stack() -> None:
    assert not _stacks(prepare(tiny_models.make("gemma3"), torch.float32, CPU))
    assert not _stacks(prepare(tiny_models.make("gpt_neox"), torch.float32, CPU))


def _llama(**sizes: int) -> LlamaForCausalLM:
    config = copy.deepcopy(tiny_models.CONFIGS["llama"])
    config.update(sizes)
    return LlamaForCausalLM(config).eval()


def _serves(model: LlamaForCausalLM) -> LoadedModel:
    """A model that is served by paged attention, with layers in few operations but no stack."""
    loaded = prepare(model, torch.float32, CPU)
    assert loaded.attention == "paged"
    assert not _stacks(loaded)
    assert any(isinstance(module, FusedDecoderLayer) for module in loaded.module.modules())
    return loaded


def test_widths_that_fill_no_vector_are_not_stacked() -> None:
    _serves(_llama(intermediate_size=130))


def test_layers_of_different_shapes_are_not_stacked() -> None:
    model = _llama()
    model.model.layers[1].mlp = LlamaMLP(_llama(intermediate_size=64).config)
    _serves(model)


class _Plain(FusedDecoderLayer):
    """A layer with sizes of inputs and outputs alone."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def forward(self, hidden_states: torch.Tensor, **_: object) -> torch.Tensor:
        return hidden_states + 1


def test_layers_that_are_no_chain_are_not_stacked() -> None:
    first, second = _Plain(), _Plain()
    x, cos_sin, others = torch.zeros(3), (torch.zeros(1),), (torch.zeros(1),)

    def chain(scale: float | None = None, angles_of_second: object = cos_sin) -> None:
        for _ in range(2):
            hidden = first(x, position_embeddings=cos_sin)
            hidden = hidden if scale is None else hidden * scale
            second(hidden, position_embeddings=angles_of_second)

    def again() -> None:
        first(first(x, position_embeddings=cos_sin), position_embeddings=cos_sin)

    assert _is_chain([first, second], chain)
    assert not _is_chain([first, second], lambda: chain(0.5))
    assert not _is_chain([first, second], lambda: chain(None, others))
    assert not _is_chain([second, first], chain)
    assert not _is_chain([first, second], again)
    assert not _is_chain([first, second], lambda: None)


def test_rows_of_another_kind_are_refused() -> None:
    _need(torch.float32)
    linear = CpuLinear(torch.randn(48, 64), None, _kernels())
    for rows in (torch.randn(2, 62), torch.randn(2, 64).bfloat16()):
        with pytest.raises(RuntimeError, match=r"not \[\.\.\., 64\] of torch.float32"):
            linear(rows)
