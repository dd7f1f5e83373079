"""Checkpoints in eight and four bits, as they are published, on a CPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from container.engine.engine import Engine
from container.messages.engine import SamplingParams
from container.model.execution.factory import make_runner
from container.model.loaded_model import LoadedModel
from container.model.loading.config import load_config
from container.model.loading.quantization import quantizer_options
from container.model.loading.weights import load_model
from tests.support.engines import Job, engine_config, ids, run
from tests.support.models import tiny_models
from tests.support.models.prepared import cpu_kernels, prepare

CPU = torch.device("cpu")
F32, BF16 = torch.float32, torch.bfloat16
BLOCK = 16
FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def _to_fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize blocks of [BLOCK, BLOCK] weights to e4m3 numbers and a scale each."""
    rows, columns = weight.shape
    blocks = weight.view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    scales = blocks.abs().amax((1, 3)) / 448
    return (blocks / scales[:, None, :, None]).view(rows, columns).to(torch.float8_e4m3fn), scales


def _to_mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize runs of 32 weights to e2m1 numbers, two a byte, and a power of two each."""
    runs = weight.transpose(1, 2).unflatten(-1, (-1, 32))
    exponents = (runs.abs().amax(-1, keepdim=True) / 6).clamp(min=1e-9).log2().ceil()
    scaled = runs / exponents.exp2()
    codes = (scaled.abs()[..., None] - FP4).abs().argmin(-1) + 8 * (scaled < 0)
    codes = codes.to(torch.uint8)
    return codes[..., 0::2] | codes[..., 1::2] << 4, (exponents[..., 0] + 127).to(torch.uint8)


def _save(name: str, method: str, folder: Path, dtype: torch.dtype = F32) -> None:
    """Write a tiny model with weights in fewer bits."""
    tiny_models.make(name).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    tensors, stored = load_file(folder / "model.safetensors"), {}
    for key, tensor in tensors.items():
        if method == "fp8" and "_proj.weight" in key:
            stored[key], stored[f"{key}_scale_inv"] = _to_fp8(tensor)
        elif method == "mxfp4" and key.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[f"{key}_blocks"], stored[f"{key}_scales"] = _to_mxfp4(tensor)
        else:
            stored[key] = tensor.to(dtype)
    save_file({key: one.contiguous() for key, one in stored.items()}, folder / "model.safetensors")
    config["quantization_config"] = {"quant_method": method} | (
        {"weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"}
        if method == "fp8"
        else {"modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    )
    (folder / "config.json").write_text(json.dumps(config))


def _expected(name: str, method: str) -> PreTrainedModel:
    """The model with the numbers that its checkpoint in fewer bits can hold."""
    model = tiny_models.make(name)
    for key, weight in model.named_parameters():
        if method == "fp8" and "_proj.weight" in key:
            numbers, scales = _to_fp8(weight.data)
            size = (BLOCK, BLOCK)
            weight.data = numbers.float() * torch.kron(scales, torch.ones(size))
        elif method == "mxfp4" and key.endswith(("experts.gate_up_proj", "experts.down_proj")):
            codes, exponents = _to_mxfp4(weight.data)
            numbers = torch.stack([codes & 15, codes >> 4], -1).flatten(-2).int()
            values = FP4[numbers & 7] * (1 - 2 * (numbers >> 3))
            scales = (exponents.float() - 127).exp2()[..., None]
            weight.data = (values * scales).flatten(-2).transpose(1, 2).contiguous()
    return model


def _load(folder: Path, dtype: torch.dtype, quantize: str | None = None) -> LoadedModel:
    config = load_config(folder)
    options: dict[str, Any] = quantizer_options(quantize, config, CPU)
    return load_model(
        folder, config, dtype, CPU, options=options, quantize=quantize,
        cpu_kernels=cpu_kernels(),
    )  # fmt: skip


@pytest.mark.parametrize(("name", "method"), [("llama", "fp8"), ("gpt_oss", "mxfp4")])
def test_a_checkpoint_in_fewer_bits_is_dequantized_and_paged(
    name: str, method: str, tmp_path: Path
) -> None:
    _save(name, method, tmp_path)
    loaded = _load(tmp_path, F32)
    assert (loaded.attention, loaded.fallbacks) == ("paged", ())
    config = engine_config()
    runner = make_runner(loaded, config, end_token_ids=frozenset())
    engine = Engine(runner, config, end_token_ids=[])
    prompt = list(range(5, 30))
    whole = _expected(name, method).generate(
        torch.tensor([prompt]), max_new_tokens=20, min_new_tokens=20, do_sample=False,
        eos_token_id=None,
    )  # fmt: skip
    got = ids(run(engine, [Job(prompt, SamplingParams(20))])[0])
    assert got == whole[0, len(prompt) :].tolist()


@pytest.mark.parametrize(("name", "method"), [("llama", "fp8"), ("gpt_oss", "mxfp4")])
def test_dequantized_weights_can_be_quantized_to_int8(
    name: str, method: str, tmp_path: Path
) -> None:
    _save(name, method, tmp_path)
    whole, packed = _load(tmp_path, BF16), _load(tmp_path, BF16, "int8")
    assert (packed.dtype, packed.attention) == (BF16, "paged")
    assert packed.phase is not None
    assert packed.weight_bytes < whole.weight_bytes


@pytest.mark.parametrize(("name", "method"), [("llama", "fp8"), ("gpt_oss", "mxfp4")])
def test_the_dtype_of_the_other_tensors_does_not_matter(
    name: str, method: str, tmp_path: Path
) -> None:
    _save(name, method, tmp_path, BF16)
    loaded = _load(tmp_path, F32)
    assert loaded.attention == "paged"
    assert {one.dtype for one in loaded.module.parameters()} == {F32}


def test_experts_that_stay_as_they_are_count_as_such() -> None:
    model = tiny_models.make("gpt_oss")
    experts = sum(one.nbytes for key, one in model.named_parameters() if ".experts." in key)
    linears = sum(one.weight.nbytes for one in model.modules() if type(one) is torch.nn.Linear)
    packed = prepare(model, F32, CPU, quantize="int8").weight_bytes
    assert experts + linears / 4 < packed < experts + linears
