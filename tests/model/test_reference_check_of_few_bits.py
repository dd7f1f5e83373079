"""Deliberate faults in weights of four and eight bits, in an eight-bit cache, and in an epsilon.

Each is refused on random, trained and outlier-injected weights, and the same without it is not.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from container.errors import ModelLoadError
from container.model.kv_cache import cache as kv_cache
from container.model.layers import cpu_linear, decoder_layer, int8_linear
from container.model.layers.cpu_decoder import DecoderStack
from container.model.layers.decoder_layer import FusedDecoderLayer
from container.model.layers.layer_ops import LayerSpec
from container.model.layers.quantized_weight import QuantizedWeight
from container.model.loading import quantization
from tests.support.models.faults import (
    BF16,
    CPU,
    F32,
    Patch,
    change_result,
    is_refused,
    model_with,
)
from tests.support.models.prepared import cpu_kernels, linears, prepare

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
WEIGHTS = ["random", "outliers", "trained"]
OPTIONS: dict[str, dict[str, Any]] = {
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4"},
    "e4m3": {"cache_dtype": E4M3},
    "e5m2": {"cache_dtype": E5M2},
}
Numbers = tuple[torch.Tensor, torch.Tensor]


def _quantized(change: Callable[[torch.Tensor, torch.Tensor], Numbers]) -> Patch:
    """Change how weights get eight bits, for torch's products and for the kernels'."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (int8_linear, cpu_linear):
            change_result(module, "quantized", lambda got, *_: change(*got))(monkeypatch)

    return patch


def _int4(change: Callable[[QuantizedWeight], QuantizedWeight]) -> Patch:
    """Change how weights get four bits."""
    return change_result(cpu_linear, "quantized_to_int4", lambda got, *_: change(got))


def _stored(change: Callable[[torch.Tensor], torch.Tensor]) -> Patch:
    """Change the bytes that are stored in a cache of eight bits."""
    return change_result(
        kv_cache, "_to_fp8", lambda got, _, dtype: change(got.view(torch.uint8)).view(dtype)
    )


def _louder(stored: torch.Tensor) -> torch.Tensor:
    """Store numbers of e4m3 that are an eighth too large."""
    return (stored.view(E4M3).float() * 1.125).clamp(-448, 448).to(E4M3).view(torch.uint8)


def _read_as_e5m2(
    got: torch.Tensor, cache: torch.Tensor, rows: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    if cache.dtype != E4M3:
        return got
    return cache.view(torch.uint8).index_select(0, rows).view(E5M2).to(dtype)


FAULTS: dict[str, tuple[str, Patch]] = {
    "scales of the next row": ("int8", _quantized(lambda n, scales: (n, scales.roll(1)))),
    "numbers of five bits": ("int8", _quantized(lambda n, scales: (n // 8 * 8, scales))),
    "scales of another row of four bits": (
        "int4",
        _int4(lambda w: w._like(w.numbers, w.scales.roll(1, 0), w.offsets)),
    ),
    "scales of the next group": (
        "int4",
        _int4(lambda w: w._like(w.numbers, w.scales.roll(1, 1), w.offsets)),
    ),
    "offsets of the next group": (
        "int4",
        _int4(lambda w: w._like(w.numbers, w.scales, w.offsets.roll(1, 1))),
    ),
    "halves of a byte swapped": (
        "int4",
        _int4(lambda w: w._like(w.numbers >> 4 | w.numbers << 4, w.scales, w.offsets)),
    ),
    "numbers of two bits": (
        "int4",
        _int4(lambda w: w._like(w.numbers & 0xCC, w.scales, w.offsets)),
    ),
    "a cache of one bit of mantissa": ("e4m3", _stored(lambda stored: stored & 0xFC)),
    "a cache whose numbers are too large": ("e4m3", _stored(_louder)),
    "a cache without signs": ("e4m3", _stored(lambda stored: stored & 0x7F)),
    "a cache that is read in another format": (
        "e4m3",
        change_result(kv_cache, "_take", _read_as_e5m2),
    ),
}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("option", OPTIONS)
def test_few_bits_are_accepted(weights: str, option: str) -> None:
    if (weights, option) == ("outliers", "int4"):
        pytest.skip("four bits of these weights say nothing; see the next test")
    assert not is_refused(model_with(weights, BF16), BF16, **OPTIONS[option])


def test_four_bits_that_lose_everything_are_refused() -> None:
    """Each layer is as good as exact arithmetic with four bits; the logits are unrelated."""
    with pytest.raises(
        ModelLoadError, match=r"logits are off by 1\.\d .limit 1\.2.; try it without"
    ):
        prepare(model_with("outliers", BF16), BF16, CPU, quantize="int4")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_fault_in_few_bits_is_refused(
    weights: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    option, patch = FAULTS[fault]
    patch(monkeypatch)
    with pytest.raises(ModelLoadError, match="the served layers are off by"):
        prepare(model_with(weights, BF16), BF16, CPU, **OPTIONS[option])


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_fault_that_the_ideal_shares_is_refused_too(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (cpu_linear, quantization):
        change_result(
            module, "quantized_to_int4",
            lambda w, *_: w._like(w.numbers, w.scales * 1.1, w.offsets),
        )(monkeypatch)  # fmt: skip
    with pytest.raises(ModelLoadError, match="four bits move the weights by"):
        prepare(model_with(weights, BF16), BF16, CPU, quantize="int4")


def test_a_refused_format_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS["scales of the next row"][1](monkeypatch)
    with pytest.raises(ModelLoadError, match=r"; try it without QUANTIZE=int8$"):
        prepare(model_with("random", BF16), BF16, CPU, quantize="int8")


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_compiled_layers_stay_enabled(
    weights: str, dtype: torch.dtype, quantize: str | None
) -> None:
    if not cpu_kernels().supports_gemm or not linears().uses_kernels(dtype):
        pytest.skip("this processor leaves products to torch")
    if (weights, quantize) == ("outliers", "int4"):
        pytest.skip("four bits of these weights say nothing")
    loaded = prepare(model_with(weights, dtype), dtype, CPU, quantize=quantize)
    assert (loaded.attention, loaded.fallbacks) == ("paged", ())
    [stack] = [part for part in loaded.module.modules() if isinstance(part, DecoderStack)]
    assert len(stack.layers) == loaded.text_config.num_hidden_layers


def _with_eps(factor: float) -> Patch:
    """Change the epsilon of a fused layer's norms."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        def changed(spec: Any, *_: object) -> Any:
            norms = tuple((weight, eps * factor) for weight, eps in spec.norms)
            return LayerSpec(
                spec.index, spec.heads, spec.kv_heads, spec.dim, spec.attn_params, norms,
                spec.head_norm, spec.act,
            )  # fmt: skip

        change_result(decoder_layer, "_spec", changed)(monkeypatch)

    return patch


# An epsilon is added to the mean square of a row: 1e-5 for 1e-6, and 1e-4 for 1e-5 in the trained
# model, moves a row by 4.5 * eps / mean square. In float32 that is seen; in bfloat16, and beside
# massive activations, it is below the rounding of the rows, so the fault costs nothing either.
EPS_IS_SEEN = {
    ("random", F32): True,
    ("random", BF16): False,
    ("outliers", F32): False,
    ("outliers", BF16): False,
    ("trained", F32): True,
    ("trained", BF16): False,
}


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_tenfold_epsilon_is_seen_where_it_exceeds_rounding(
    weights: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_eps(10)(monkeypatch)
    loaded = prepare(model_with(weights, dtype), dtype, CPU)
    fused = any(isinstance(part, FusedDecoderLayer) for part in loaded.module.modules())
    assert fused != EPS_IS_SEEN[weights, dtype], loaded.fallbacks
