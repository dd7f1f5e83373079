"""QUANTIZE: weights of eight and four bits quantized here; refusals have a reason."""

import copy
import random
from typing import Any

import pytest
import torch

from container.engine.engine import Engine
from container.errors import ConfigError
from container.messages.engine import SamplingParams
from container.model.execution.factory import make_runner
from container.model.layers.cpu_linear import CpuLinear
from container.model.layers.int8_linear import BatchPhase, Int8Linear
from container.model.layers.linear import FastLinear
from container.model.layers.quantized_weight import quantized_to_int4
from container.model.loading.quantization import BEFORE, NOT_OFFERED, ON_LOAD, quantizer_options
from tests.support.engines import Job, ids, run
from tests.support.models import prepared, tiny_models
from tests.support.models.prepared import prepare
from tests.support.torch_engines import config_for

CPU = torch.device("cpu")


@pytest.fixture(params=["kernels", "torch"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whose products there are: those of the kernels, where this processor can, or torch's."""
    if request.param == "torch":
        monkeypatch.setattr(prepared, "cpu_kernels", lambda: None)
    return str(request.param)


def _rounded(name: str) -> torch.nn.Module:
    """A model whose weights are exactly what eight bits can say."""
    model = tiny_models.make(name)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            scales = module.weight.data.abs().amax(1, keepdim=True) / 127
            module.weight.data = (module.weight.data / scales).round() * scales
    return model


def _steps(name: str) -> torch.nn.Module:
    """A model whose weights are exactly what four bits in groups of 32 say; the output eight."""
    model = _rounded(name)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings():
            exact = quantized_to_int4(module.weight.data).dequantized().unflatten(1, (-1, 32))
            low, high = exact.amin(-1, keepdim=True), exact.amax(-1, keepdim=True)
            step = (high - low) / 15
            numbers = ((exact - low) / step).round()
            numbers[..., 0], numbers[..., 1] = 0, 15
            module.weight.data = (numbers * step + low).flatten(1)
    return model


def _engine(name: str, dtype: torch.dtype = torch.float32, **sizes: int) -> Engine:
    loaded = prepare(_rounded(name).to(dtype), dtype, CPU, quantize="int8")
    config = config_for(loaded, num_blocks=100, **sizes)
    return Engine(make_runner(loaded, config, end_token_ids=frozenset()), config, end_token_ids=[])


def _assert_generates(engine: Engine, model: Any) -> None:
    """Compare the engine's greedy answers with those of the model's own `generate`."""
    jobs = [Job(_prompt(9 + i, i), SamplingParams(20), at_step=3 * i) for i in range(4)]
    got = run(engine, jobs)
    for index, job in enumerate(jobs):
        whole = model.generate(
            torch.tensor([job.prompt]), max_new_tokens=20, min_new_tokens=20, do_sample=False,
            eos_token_id=None,
        )  # fmt: skip
        assert ids(got[index]) == whole[0, len(job.prompt) :].tolist()


def _prompt(length: int, seed: int = 0) -> list[int]:
    rnd = random.Random(seed)
    return [rnd.randrange(2, 200) for _ in range(length)]


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3", "gpt_neox", "qwen3_next", "bamba"])
def test_exact_eight_bit_weights_equal_generate(name: str, products: str) -> None:
    model = _rounded(name)
    _assert_generates(_engine(name), model)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3"])
def test_exact_four_bit_weights_equal_generate(name: str, products: str) -> None:
    model = _steps(name)
    loaded = prepare(_steps(name), torch.float32, CPU, quantize="int4")
    config = config_for(loaded, num_blocks=100)
    runner = make_runner(loaded, config, end_token_ids=frozenset())
    engine = Engine(runner, config, end_token_ids=[])
    _assert_generates(engine, model)
    assert bool(loaded.fallbacks) == (products == "torch")


def test_layers_have_four_bits_and_the_output_eight() -> None:
    loaded = prepare(tiny_models.make("llama"), torch.float32, CPU, quantize="int4")
    linear_layers = [module for module in loaded.module.modules() if isinstance(module, CpuLinear)]
    kinds = [one.weight_args.kind for one in linear_layers]
    assert sorted(kinds) == [2] + 8 * [3], "the output's int8, and two layers of four products"


def test_weights_without_whole_groups_stay_unquantized() -> None:
    layer = prepared.linears().int4(torch.randn(48, 80), None)
    assert isinstance(layer, CpuLinear)
    assert layer.weight_args.kind == 0


def test_four_bits_are_for_cpus() -> None:
    config = copy.deepcopy(tiny_models.CONFIGS["llama"])
    with pytest.raises(ConfigError, match=r"QUANTIZE=int4 cannot work here.*CPUs"):
        quantizer_options("int4", config, torch.device("cuda"))
    assert quantizer_options("int4", config, CPU) == {}


def test_every_linear_layer_has_eight_bits(products: str) -> None:
    loaded = prepare(tiny_models.make("llama"), torch.float32, CPU, quantize="int8")
    linear_layers = [module for module in loaded.module.modules() if isinstance(module, FastLinear)]
    assert len(linear_layers) == 2 * 4 + 1, "two layers of four products, and the output"
    assert all(isinstance(one, CpuLinear | Int8Linear) for one in linear_layers)
    assert {one.numbers.dtype for one in linear_layers} == {torch.int8}
    assert products == "kernels" or not any(isinstance(one, CpuLinear) for one in linear_layers)
    assert torch.nn.Linear not in map(type, loaded.module.modules())


def test_a_weight_is_off_by_at_most_half_a_step(products: str) -> None:
    weight = torch.randn(50, 40)
    layer = prepared.linears().int8(weight, None, phase=None)
    steps = weight.abs().amax(1) / 127
    error = (layer(torch.eye(40)).T - weight).abs()
    assert (error <= steps[:, None] / 2 * 1.001).all()


def test_mixed_steps_equal_separate_steps() -> None:
    phase = BatchPhase()
    layer = Int8Linear(torch.randn(48, 64).bfloat16(), torch.randn(48).bfloat16(), phase)
    rows = torch.randn(1, 20, 64).bfloat16()
    phase.num_decodes = 6
    both = layer(rows)
    phase.num_decodes = 20
    assert torch.equal(both[:, :6], layer(rows)[:, :6])
    phase.num_decodes = 0
    assert torch.equal(both[:, 6:], layer(rows)[:, 6:])


def test_a_seed_gives_the_same_ids_alone_and_among_others(products: str) -> None:
    job = Job(_prompt(9), SamplingParams(30, temperature=1.3, seed=4), at_step=4)
    others = [Job(_prompt(20 + i, i), SamplingParams(20, temperature=1.1)) for i in range(9)]
    sizes = {"block_size": 32, "max_running": 12, "max_batch_tokens": 128}
    alone = ids(run(_engine("llama", torch.bfloat16, **sizes), [job])[0])
    assert ids(run(_engine("llama", torch.bfloat16, **sizes), [job, *others])[0]) == alone


def test_a_model_that_cannot_be_paged_is_refused_eight_bits() -> None:
    for quantize in ("int8", "int4"):
        with pytest.raises(ConfigError, match=f"QUANTIZE={quantize}.*not paged"):
            prepare(tiny_models.make("t5"), torch.float32, CPU, quantize=quantize)


@pytest.mark.parametrize("name", [*ON_LOAD, *BEFORE])
def test_formats_that_need_a_gpu_are_refused_on_a_cpu(name: str) -> None:
    with pytest.raises(ConfigError, match=f"QUANTIZE={name} cannot work here.*GPU"):
        quantizer_options(name, copy.deepcopy(tiny_models.CONFIGS["llama"]), CPU)


@pytest.mark.parametrize("name", NOT_OFFERED)
def test_unloadable_formats_are_refused_with_an_alternative(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot work here.*(GPTQ|gptq)"):
        quantizer_options(name, copy.deepcopy(tiny_models.CONFIGS["llama"]), torch.device("cuda"))


@pytest.mark.parametrize("name", BEFORE)
def test_a_checkpoint_that_was_not_quantized_that_way_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="the checkpoint is not quantized"):
        quantizer_options(name, copy.deepcopy(tiny_models.CONFIGS["llama"]), torch.device("cuda"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine that lacks a GPU")
@pytest.mark.parametrize("name", ON_LOAD)
def test_a_quantizers_own_refusal_is_passed_on(name: str) -> None:
    with pytest.raises(ConfigError, match=f"QUANTIZE={name} cannot work here: ."):
        quantizer_options(name, copy.deepcopy(tiny_models.CONFIGS["llama"]), torch.device("cuda"))


def test_a_quantized_checkpoint_gets_no_second_quantisation() -> None:
    config = copy.deepcopy(tiny_models.CONFIGS["llama"])
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(ConfigError, match="quantized already"):
        quantizer_options("int8", config, CPU)


def test_without_the_setting_nothing_changes() -> None:
    assert quantizer_options(None, copy.deepcopy(tiny_models.CONFIGS["llama"]), CPU) == {}
