"""Deliberate faults: each is refused on random, trained and outlier-injected weights.

A check that accepts everything would let all other tests here pass, and one that refuses everything
would only make models slow; so every fault stands beside the correct path on the same weights.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from container.errors import ConfigError
from container.model.attention import paged, positions, traced, unpadded
from container.model.attention.dense import attend_dense
from container.model.attention.metadata import AttentionMetadata, AttentionParams
from container.model.embedder_loader import load_model
from container.model.embedding.embedder import Embedder
from container.model.fallbacks import Fallbacks
from container.model.kv_cache.cache import KVCache
from container.model.layers import decoder_layer, layer_ops
from container.model.layers.cpu_linear import LinearFactory
from container.model.layers.decoder_layer import FusedDecoderLayer
from container.model.layers.layer_ops import LayerOps
from container.model.layers.linear import PlainLinear
from container.model.loaded_model import LoadedModel
from container.model.optimize import fusing
from tests.support.models import embedders, prepared, tiny_models
from tests.support.models.faults import (
    BF16,
    CPU,
    F32,
    Patch,
    change_attn_params,
    change_result,
    is_refused,
    model_with,
)
from tests.support.models.prepared import prepare


def _swap_heads(out: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return out.index_select(1, torch.tensor([1, 0, *range(2, out.shape[1])]))


def _see_the_next(mask: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return mask | mask.roll(1, -1)


def _hide_the_first(bias: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    bias = bias.clone()
    bias[..., 0] = float("-inf")
    return bias


def _hide_the_last(bias: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    hidden = bias.clone()
    for row in hidden.flatten(0, -2):
        row[int((row == 0).nonzero().max())] = float("-inf")
    return hidden


def _read_a_stale_block(
    rows: torch.Tensor, _: AttentionMetadata, part: Any, kv_heads: int
) -> torch.Tensor:
    rows = rows.clone().view(-1, kv_heads, part.block_table.shape[1])
    rows[:, :, 0] = (rows[:, :, 0] + 2 * kv_heads) % rows.max().clamp_(min=1)
    return rows.flatten()


def _group_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each group of query heads another group's keys and values."""
    attend = attend_dense

    def swapped(query: Any, keys: Any, values: Any, *args: Any, **options: Any) -> torch.Tensor:
        return attend(query, keys.flip(0), values.flip(0), *args, **options)

    monkeypatch.setattr(paged, "attend_dense", swapped)


def _store_no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    write = KVCache.write

    def keys_only(self: KVCache, layer: int, keys: Any, values: Any, slots: Any) -> None:
        write(self, layer, keys, torch.zeros_like(values), slots)

    monkeypatch.setattr(KVCache, "write", keys_only)


def _reuse_one_layers_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = paged.attend

    def first(step: AttentionMetadata, _layer: int, *args: object) -> torch.Tensor:
        return attend(step, 0, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(paged, "attend", first)


def _scaled(attn_params: AttentionParams, factor: float) -> AttentionParams:
    return replace(attn_params, scale=attn_params.scale * factor)


def _roll_sinks(attn_params: AttentionParams) -> AttentionParams:
    assert attn_params.sinks is not None
    return replace(attn_params, sinks=attn_params.sinks.roll(1))


def _scale_sinks(attn_params: AttentionParams) -> AttentionParams:
    assert attn_params.sinks is not None
    return replace(attn_params, sinks=attn_params.sinks * attn_params.scale)


ATTENTION_FAULTS: dict[str, Patch] = {
    "a scale that is off by a tenth": change_attn_params(partial(_scaled, factor=1.1)),
    "no scale": change_attn_params(partial(replace, scale=1.0)),
    "a soft cap that the model does not have": change_attn_params(partial(replace, softcap=2.0)),
    "two heads swapped": change_result(paged, "attend_cached", _swap_heads),
    "a prompt that sees the next token": change_result(
        AttentionMetadata, "tile_mask", _see_the_next
    ),
    "a decode that does not see the first token": change_result(
        AttentionMetadata, "decode_bias", _hide_the_first
    ),
    "a decode that does not see itself": change_result(
        AttentionMetadata, "decode_bias", _hide_the_last
    ),
    "a stale block": change_result(AttentionMetadata, "block_rows", _read_a_stale_block),
    "KV heads in the wrong groups": _group_wrongly,
    "values that are not stored": _store_no_values,
    "one cache for all layers": _reuse_one_layers_cache,
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", ATTENTION_FAULTS)
@pytest.mark.parametrize("weights", ["random", "outliers", "trained"])
def test_a_fault_in_paged_attention_is_refused(
    weights: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ATTENTION_FAULTS[fault](monkeypatch)
    assert is_refused(model_with(weights, BF16), BF16)


@cache
def _served(weights: str, dtype: torch.dtype, name: str) -> tuple[str, tuple[str, ...]]:
    """Return how the correct path serves a model; once for all faults beside it."""
    loaded = prepare(model_with(weights, dtype, name), dtype, CPU)
    return loaded.attention, loaded.fallbacks


def _wider(attn_params: AttentionParams, by: int) -> AttentionParams:
    assert attn_params.window is not None
    return replace(attn_params, window=attn_params.window + by)


@pytest.mark.parametrize("by", [1, -1])
@pytest.mark.parametrize("weights", ["random", "outliers", "trained"])
def test_a_window_off_by_one_is_refused(
    weights: str, by: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _served(weights, BF16, "mistral") == ("paged", ())
    tile_mask, decode_bias = AttentionMetadata.tile_mask, AttentionMetadata.decode_bias
    monkeypatch.setattr(
        AttentionMetadata,
        "tile_mask",
        lambda self, start, low, stop, params: tile_mask(
            self, start, low, stop, _wider(params, by)
        ),
    )
    assert is_refused(model_with(weights, BF16, "mistral"), BF16)
    monkeypatch.undo()
    monkeypatch.setattr(
        AttentionMetadata,
        "decode_bias",
        lambda self, group, params, *more: decode_bias(self, group, _wider(params, by), *more),
    )
    assert is_refused(model_with(weights, BF16, "mistral"), BF16)


SINK_FAULTS: dict[str, Patch] = {
    "sinks that are left out": change_attn_params(partial(replace, sinks=None)),
    "another head's sink": change_attn_params(_roll_sinks),
    "sinks that are scaled": change_attn_params(_scale_sinks),
}


@pytest.mark.parametrize("fault", SINK_FAULTS)
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(("weights", "name"), [("random", "gpt_oss"), ("trained", "granite_swa")])
def test_a_fault_in_attention_sinks_is_refused(
    weights: str, name: str, fault: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _served(weights, dtype, name) == ("paged", ())
    SINK_FAULTS[fault](monkeypatch)
    loaded = prepare(model_with(weights, dtype, name), dtype, CPU)
    assert loaded.attention == "own"
    assert "paged attention differs" in loaded.fallbacks[0]


def _bias(change: Callable[[torch.Tensor], torch.Tensor | None]) -> Patch:
    """Change the bias that a traced attention hands on."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        attend = paged.attend

        def changed(step: Any, layer: int, q: Any, k: Any, v: Any, params: Any) -> torch.Tensor:
            bias = change(params.key_bias)
            return attend(step, layer, q, k, v, replace(params, key_bias=bias))

        monkeypatch.setattr(traced, "attend", changed)

    return patch


def _longer_chunks(attn_params: AttentionParams, by: int) -> AttentionParams:
    chunk = attn_params.chunk
    return attn_params if chunk is None else replace(attn_params, chunk=chunk + by)


def _without_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions, "_give_positions", lambda *_: None)


FAULTS_OF_A_KIND: dict[str, tuple[str, Patch]] = {
    "ALiBi that is left out": ("bloom", _bias(lambda _: None)),
    "ALiBi's slopes of other heads": ("bloom", _bias(lambda bias: bias.roll(1, 0))),
    "ALiBi's slopes that are off by a twentieth": ("bloom", _bias(lambda bias: bias * 1.05)),
    "ALiBi that is off by one position": ("bloom", _bias(lambda bias: bias.roll(1, 1))),
    "chunks that are too long": ("llama4", change_attn_params(partial(_longer_chunks, by=1))),
    "chunks that are too short": ("llama4", change_attn_params(partial(_longer_chunks, by=-1))),
    "positions that are those of the rows": ("llama4", _without_positions),
}


@pytest.mark.parametrize("fault", FAULTS_OF_A_KIND)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_fault_in_a_kind_of_attention_is_refused(
    fault: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, patch = FAULTS_OF_A_KIND[fault]
    assert _served("random", dtype, name) == ("paged", ())
    patch(monkeypatch)
    assert prepare(tiny_models.make(name, dtype), dtype, CPU).attention == "own"


def _replace_spec(monkeypatch: pytest.MonkeyPatch, **changes: Callable[[Any], Any]) -> None:
    """Change what a fused layer knows of the model's."""
    spec_of = decoder_layer._spec

    def changed(layer: Any, attn_params: AttentionParams) -> layer_ops.LayerSpec:
        layer_spec = spec_of(layer, attn_params)
        values = {name: change(getattr(layer_spec, name)) for name, change in changes.items()}
        return replace(layer_spec, **values)

    monkeypatch.setattr(decoder_layer, "_spec", changed)


def _large_eps(norms: Any) -> Any:
    return tuple((weight, 1.0) for weight, _ in norms)


def _rotate_the_wrong_half(
    tables: tuple[torch.Tensor, torch.Tensor], *_: object
) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = tables
    return cos, -sin


LAYER_FAULTS: dict[str, Patch] = {
    "a wrong eps": partial(_replace_spec, norms=_large_eps),
    "a norm that is off by a twentieth": partial(
        _replace_spec, norms=lambda norms: (norms[0], (norms[1][0] * 1.05, norms[1][1]))
    ),
    "another activation": partial(_replace_spec, act=lambda _: torch.nn.functional.gelu),
    "a scale that is off by a tenth": partial(
        _replace_spec,
        attn_params=partial(_scaled, factor=1.1),
    ),
    "a half rotated the wrong way": change_result(LayerOps, "_tables", _rotate_the_wrong_half),
    "gate and up swapped": change_result(
        LayerOps,
        "act_and_mul",
        lambda out, self, gate_up, _: self.spec.act(gate_up.chunk(2, -1)[1]) * out,
    ),
    "a residual that is left out": change_result(
        LayerOps, "add_residual", lambda out, _, x, *__: out - x
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", LAYER_FAULTS)
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("weights", ["random", "outliers", "trained"])
def test_a_fault_in_fused_layers_keeps_the_models_own(
    weights: str,
    dtype: torch.dtype,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fusing, "_ops_choices", lambda *_: [LayerOps])
    monkeypatch.setattr(LinearFactory, "packs", lambda *_: True)
    monkeypatch.setattr(LinearFactory, "linear", lambda _, *args: PlainLinear(*args))
    monkeypatch.setattr(LinearFactory, "head", lambda _, *args: PlainLinear(*args))
    assert _fused_by_torch(weights, dtype) > 0
    LAYER_FAULTS[fault](monkeypatch)
    loaded = prepare(model_with(weights, dtype), dtype, CPU)
    assert (loaded.attention, _fuse(loaded)) == ("paged", 0)
    [line] = loaded.fallbacks
    assert line.startswith("fused layers with LayerOps: disabled, since they are off by")


@cache
def _fused_by_torch(weights: str, dtype: torch.dtype) -> int:
    """Return how many layers are fused, in a test that lets LayerOps alone serve."""
    return _fuse(prepare(model_with(weights, dtype), dtype, CPU))


def _fuse(loaded: LoadedModel) -> int:
    return sum(isinstance(module, FusedDecoderLayer) for module in loaded.module.modules())


def test_texts_that_attend_to_each_other_stay_padded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = embedders.save_embedder(tmp_path, "bert")
    assert _embedder(folder).is_unpadded
    spans_of = unpadded.spans_of
    monkeypatch.setattr(unpadded, "spans_of", lambda lengths: spans_of([sum(lengths)]))
    assert not _embedder(folder).is_unpadded


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_trained_encoder_is_accepted(dtype: torch.dtype) -> None:
    assert _embedder(embedders.MINILM, dtype).is_unpadded


def _embedder(folder: Path, dtype: torch.dtype = F32) -> Embedder:
    embedder = Embedder(load_model(folder, CPU, dtype), CPU, prepared.cpu_kernels(), Fallbacks())
    embedder.prepare()
    return embedder


def test_a_slow_path_is_logged_and_can_be_refused(caplog: pytest.LogCaptureFixture) -> None:
    loaded = prepare(tiny_models.make("mvp"), F32, CPU)
    [line] = loaded.fallbacks
    assert "its decoder computes attention in its own way" in line
    assert [record.levelname for record in caplog.records if line in record.message] == ["WARNING"]
    fallbacks = Fallbacks()
    fallbacks.refuse()
    fallbacks.extend(loaded.fallbacks)
    with pytest.raises(ConfigError, match=r"REQUIRE_FAST_PATH is set, but .* one after another"):
        fallbacks.refuse()
