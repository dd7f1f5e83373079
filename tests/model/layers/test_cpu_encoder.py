"""Encoder layers in one call of the kernels, against the same layers in torch's operations."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from container.model.attention.unpadded import spans_of
from container.model.kernels.cpu import Kernels
from container.model.layers.cpu_encoder import EncoderStack, fits_cpu_encoder
from container.model.layers.encoder_layer import EncoderParts, FusedEncoderLayer
from tests.support.models import prepared


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def _kernels() -> Kernels:
    kernels = prepared.cpu_kernels()
    if not kernels.supports_gemm:
        pytest.skip("this processor leaves products to torch")
    return kernels


def _parts(
    dtype: torch.dtype, dim: int, computed_in: torch.dtype | None = None
) -> list[EncoderParts]:
    """Two layers of three heads, with weights that `dtype` can say."""
    torch.manual_seed(dim)
    config = BertConfig(
        hidden_size=3 * dim, num_attention_heads=3, num_hidden_layers=2,
        intermediate_size=6 * dim, vocab_size=10, initializer_range=0.05,
    )  # fmt: skip
    model = BertModel(config).to(dtype).to(computed_in or dtype).eval()
    return [EncoderParts.of(layer) for layer in model.encoder.layer]


def _assert_rows_near(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    off = (got.float() - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert off.max() <= 3 * prepared.TOLERANCE[dtype]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([torch.float32, torch.bfloat16]), st.sampled_from([16, 32, 48, 64, 128]),
    st.lists(st.integers(1, 90), min_size=1, max_size=6),
)  # fmt: skip
def test_encoder_layers_equal_torch(dtype: torch.dtype, dim: int, lengths: list[int]) -> None:
    stack = EncoderStack(_parts(dtype, dim), _kernels())
    rows = torch.randn(1, sum(lengths), 3 * dim).to(dtype)
    spans = spans_of(sorted(lengths))
    got = stack(rows, spans=spans).float()
    expected = rows.float()
    for one in _parts(dtype, dim, torch.float32):
        expected = FusedEncoderLayer(one)(expected, spans=spans)
    _assert_rows_near(got, expected, dtype)


@pytest.mark.parametrize("dim", [32, 48])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_long_texts_are_computed_as_torch_does(dtype: torch.dtype, dim: int) -> None:
    parts = _parts(dtype, dim)
    rows, spans = torch.randn(1, 2101, 3 * dim).to(dtype), spans_of([1, 2100])
    exact = FusedEncoderLayer(_parts(dtype, dim, torch.float32)[0])(rows.float(), spans=spans)
    _assert_rows_near(EncoderStack(parts[:1], _kernels())(rows, spans=spans), exact, dtype)


@pytest.mark.parametrize("dim", [32, 48])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_are_invariant_to_batch_and_threads(dtype: torch.dtype, dim: int) -> None:
    stack = EncoderStack(_parts(dtype, dim), _kernels())
    lengths = [1, 7, 16, 33, 33, 150, 2100]  # the last one goes a few rows at a time
    texts = [torch.randn(1, length, 3 * dim).to(dtype) for length in lengths]
    alone = [stack(text, spans=spans_of([text.shape[1]])) for text in texts]
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            together = stack(torch.cat(texts, 1), spans=spans_of(lengths))
            assert torch.equal(together, torch.cat(alone, 1))
    finally:
        torch.set_num_threads(before)


def test_unsupported_encoder_layers_use_torch() -> None:
    kernels = _kernels()
    assert fits_cpu_encoder(kernels, _parts(torch.float32, 32))
    for parts in (_parts(torch.float16, 32), _parts(torch.float32, 24)):
        assert not fits_cpu_encoder(kernels, parts)
    mixed = [*_parts(torch.float32, 32), *_parts(torch.float32, 64)]
    assert not fits_cpu_encoder(kernels, mixed)
