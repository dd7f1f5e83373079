"""Tensors of GGUF files: every supported type against gguf's own reader."""

from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from container.errors import ModelLoadError
from container.model.formats.gguf_tensors import BLOCKS, read_tensor
from container.model.layers.quantized_weight import QuantizedWeight

# Of a type that gguf does not write, any bytes are a block, but for its factors.
FACTORS = {"Q4_K": (0, 4), "Q5_K": (0, 4), "Q6_K": (208, 210)}


def _tensor(name: str, data: np.ndarray, shape: tuple[int, ...]) -> Any:
    kind = gguf.GGMLQuantizationType[name]
    return SimpleNamespace(name="blk.0.x", tensor_type=kind, data=data, shape=shape[::-1])


def _blocks(name: str, rows: int, inputs: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    if name not in FACTORS:
        values = rng.standard_normal((rows, inputs)).astype(np.float32)
        return gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])
    size = BLOCKS[name][0]
    blocks = rng.integers(256, size=(rows, inputs // 256, size), dtype=np.uint8)
    start, stop = FACTORS[name]
    factors = rng.uniform(0.01, 0.1, (*blocks.shape[:2], (stop - start) // 2))
    blocks[..., start:stop] = factors.astype(np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


@pytest.mark.parametrize("name", BLOCKS)
def test_quantized_weights_are_those_that_gguf_reads(name: str) -> None:
    data = _blocks(name, 6, 512)
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name])
    weight = read_tensor(_tensor(name, data, (6, 512)), torch.float32)
    assert isinstance(weight, QuantizedWeight)
    assert weight.bits == BLOCKS[name][2]
    torch.testing.assert_close(weight.dequantized(), torch.from_numpy(expected))
    three = read_tensor(_tensor(name, data, (2, 3, 512)), torch.float32)
    assert three.shape == (2, 3, 512)
    assert type(three) is torch.Tensor


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)],
)
def test_plain_weights_stay_as_they_are(name: str, dtype: torch.dtype) -> None:
    values = torch.randn(3, 32).to(dtype)
    data = values.view(torch.uint8).numpy() if name == "BF16" else values.numpy()
    read = read_tensor(_tensor(name, data, (3, 32)), torch.float32)
    assert torch.equal(read, values)


def test_another_type_is_refused_with_the_tensors_name() -> None:
    data = np.zeros((1, 84), np.uint8)
    with pytest.raises(ModelLoadError, match=r"blk\.0\.x has the type Q2_K.*Q4_K"):
        read_tensor(_tensor("Q2_K", data, (1, 256)), torch.float32)
