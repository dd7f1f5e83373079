"""Weights in groups of inputs: as a tensor they compute; merged and looked up they stay small."""

import pytest
import torch
from torch import nn

from container.model.layers.quantized_weight import (
    QuantizedWeight,
    can_quantize_to_int4,
    quantized_to_int4,
)

WEIGHT = torch.randn(20, 96, generator=torch.Generator().manual_seed(0))


def test_a_weight_is_off_by_little_of_its_groups_range() -> None:
    grouped = WEIGHT.unflatten(1, (-1, 32))
    range_of = (grouped.amax(-1) - grouped.amin(-1)).repeat_interleave(32, 1)
    off = (quantized_to_int4(WEIGHT).dequantized() - WEIGHT).abs() / range_of
    assert off.median() < 1 / 30
    assert off.max() < 0.1 + 1 / 30


def test_sixteen_even_steps_and_equal_weights_are_exact() -> None:
    steps = torch.randint(16, (6, 64)).float()
    steps[:, ::32], steps[:, 1::32] = 0, 15
    torch.testing.assert_close(quantized_to_int4(steps / 8 - 1).dequantized(), steps / 8 - 1)
    equal = torch.full((3, 32), 0.37)
    torch.testing.assert_close(quantized_to_int4(equal).dequantized(), equal)


def test_more_outputs_than_are_quantized_at_once() -> None:
    weight = torch.randn(1100, 32)
    many, few = quantized_to_int4(weight), quantized_to_int4(weight[1050:])
    assert torch.equal(many.dequantized()[1050:], few.dequantized())


def test_it_computes_as_any_tensor() -> None:
    weight = quantized_to_int4(WEIGHT)
    layer = nn.Linear(96, 20)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    assert isinstance(layer.weight, QuantizedWeight)
    x = torch.randn(3, 96)
    expected = nn.functional.linear(x, weight.dequantized(), layer.bias)
    assert torch.equal(layer(x), expected)
    assert type(layer.weight.to(torch.float64)) is torch.Tensor
    assert layer.weight.shape == (20, 96)
    assert weight.stored_bytes == 20 * (96 // 2 + 2 * 4 * 3)


def test_embedding_computes_the_rows_that_it_looks_up() -> None:
    embedding = nn.Embedding(20, 96)
    weight = quantized_to_int4(WEIGHT)
    embedding.weight = nn.Parameter(weight, requires_grad=False)
    ids = torch.tensor([[3, 19], [0, 3]])
    assert torch.equal(embedding(ids), weight.dequantized()[ids])


def test_merged_weights_keep_their_format() -> None:
    four = quantized_to_int4(WEIGHT)
    eight, small = four.with_eight_bits(), quantized_to_int4(WEIGHT, 16)
    for parts, bits in (([four, four], 4), ([four, eight], 8), ([four, small, eight], 8)):
        merged = torch.cat(parts)
        assert isinstance(merged, QuantizedWeight)
        assert merged.bits == bits
        expected = torch.cat([part.dequantized() for part in parts])
        assert torch.equal(merged.dequantized(), expected)


def test_weights_of_different_formats_merge_dequantized() -> None:
    four = quantized_to_int4(WEIGHT)
    order = torch.arange(96, dtype=torch.int32) % 3
    shuffled = QuantizedWeight(
        four.numbers, four.scales, four.offsets, bits=4, dtype=torch.float32, group_of=order
    )
    for parts in ([four, WEIGHT], [four, shuffled]):
        merged = torch.cat(parts)
        assert type(merged) is torch.Tensor
        assert torch.equal(merged[:20], four.dequantized())
    assert isinstance(torch.cat([shuffled, shuffled]), QuantizedWeight)


def test_sizes_that_contradict_each_other_are_refused() -> None:
    four = quantized_to_int4(WEIGHT)
    for scales in (four.scales[:3], four.scales[:, :2], torch.ones(20, 5)):
        with pytest.raises(ValueError, match="20 outputs and 96 inputs"):
            QuantizedWeight(four.numbers, scales, four.offsets, bits=4, dtype=torch.float32)


def test_inputs_that_do_not_divide_are_not_quantized() -> None:
    assert can_quantize_to_int4(WEIGHT)
    assert not can_quantize_to_int4(WEIGHT[:, :80])


@pytest.mark.parametrize(
    ("weight", "is_half"),
    [
        (WEIGHT, True),
        (torch.zeros(4, 64), True),
        (torch.full((4, 64), 0.3), False),  # equal weights stay exact
        (WEIGHT * 1e-5, False),  # steps that float16 would round coarsely
        (WEIGHT / WEIGHT.abs().max() * 0.01 + 1, False),  # far from zero beside their range
        (WEIGHT * 1e6, False),
    ],
)
def test_scales_are_float16_where_that_loses_next_to_nothing(
    weight: torch.Tensor, *, is_half: bool
) -> None:
    quantized = quantized_to_int4(weight)
    for part in (quantized.scales, quantized.offsets):
        assert torch.equal(part.half().float(), part) == is_half or bool((part == 0).all())
    ranges = weight.unflatten(1, (-1, 32))
    limit = (ranges.amax(-1) - ranges.amin(-1)) / 15 * 0.57 + 1e-30
    off = (quantized.dequantized() - weight).abs().unflatten(1, (-1, 32)).mean(-1)
    assert bool((off <= limit).all())
