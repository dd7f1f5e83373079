"""AWQ, GPTQ and compressed-tensors folders on a CPU: the same tokens as with the plain weights."""

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from container.engine.engine import Engine
from container.errors import ConfigError, ModelLoadError
from container.messages.engine import SamplingParams
from container.model.execution.factory import make_runner
from container.model.layers.cpu_linear import CpuLinear
from container.model.loading.config import load_config
from container.model.loading.weights import load_model
from tests.support.engines import Job, engine_config, ids, run
from tests.support.models import packed_checkpoints as packed
from tests.support.models import prepared, tiny_models

CPU = torch.device("cpu")
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
W4A16 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32}}},
}
W8A8 = {"weights": {"num_bits": 8}, "input_activations": {"num_bits": 8}}
LAYOUTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gptq": (packed.gptq, GPTQ),
    "gptq_v2": (partial(packed.gptq, version=2), GPTQ | {"checkpoint_format": "gptq_v2"}),
    "gptq act-order": (partial(packed.gptq, act_order=True), GPTQ | {"desc_act": True}),
    "gptq 8 bits": (partial(packed.gptq, bits=8), GPTQ | {"bits": 8}),
    "awq": (packed.awq, AWQ),
    "w4a16": (packed.compressed, W4A16),
    "w4a16 symmetric": (partial(packed.compressed, symmetric=True), W4A16),
}


def _load(folder: Path, **options: Any) -> Any:
    config = load_config(folder)
    kernels = prepared.cpu_kernels()
    return load_model(folder, config, torch.float32, CPU, cpu_kernels=kernels, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokens_are_those_of_the_plain_weights(layout: str, tmp_path: Path) -> None:
    pack, quantization = LAYOUTS[layout]
    model = tiny_models.make("qwen2")
    packed.save(model, tmp_path, pack, quantization)
    loaded = _load(tmp_path)
    kinds = [m.weight_args.kind for m in loaded.module.modules() if isinstance(m, CpuLinear)]
    assert kinds.count(4 if "8" in layout else 3) == 8, "two layers of four products"
    config = engine_config(num_blocks=100)
    runner = make_runner(loaded, config, end_token_ids=frozenset())
    engine = Engine(runner, config, end_token_ids=[])
    rnd = random.Random(0)
    prompts = [[rnd.randrange(2, 200) for _ in range(9 + i)] for i in range(3)]
    got = run(engine, [Job(prompt, SamplingParams(12)) for prompt in prompts])
    for index, prompt in enumerate(prompts):
        whole = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, min_new_tokens=12, do_sample=False,
            eos_token_id=None,
        )  # fmt: skip
        assert ids(got[index]) == whole[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        (GPTQ | {"bits": 3}, r"bits 3; a CPU serves 4 and 8 bits"),
        (AWQ | {"version": "gemv"}, r"version 'gemv' of AWQ"),
        (W4A16 | {"format": "float-quantized"}, r"format 'float-quantized'"),
        (W4A16 | {"config_groups": {"a": W8A8}}, r"input_activations"),
    ],
)  # fmt: skip
def test_other_kinds_are_refused_by_name(
    quantization: dict[str, Any], message: str, tmp_path: Path
) -> None:
    packed.save(tiny_models.make("llama"), tmp_path, packed.gptq, quantization)
    with pytest.raises((ModelLoadError, ConfigError), match=message):
        _load(tmp_path)


def test_tensors_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    packed.save(tiny_models.make("llama"), tmp_path, packed.awq, GPTQ)
    with pytest.raises(ModelLoadError, match=r"tensors of model\.layers\.0\."):
        _load(tmp_path)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    packed.save(tiny_models.make("llama"), tmp_path, packed.gptq, GPTQ)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ModelLoadError, match=r"lack \d+ tensors.*model\.layers\.2"):
        _load(tmp_path)
