"""The time of the checks at start: bounded by layers, and the log names what is left out for it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from container.model.attention.metadata import AttentionMetadata
from container.model.checks import skipping
from container.model.checks.check_times import CheckTimes
from container.model.checks.layer_choice import MAX_HELD, MAX_LAYERS, choose_layers, group_layers
from container.model.engine_loader import load_engine
from container.model.execution.forward_pass import ForwardPass
from container.model.layers.cpu_decoder import DecoderStack
from container.model.loading import paged_trial
from container.settings.engine import MemorySettings
from container.settings.model import ModelSettings
from container.settings.settings import Settings
from tests.support.models import prepared, tiny_models
from tests.support.models.faults import BF16, CPU, F32, Patch, change_result, is_refused
from tests.support.servers import DEMO_MODEL


def test_three_layers_of_each_kind_are_checked() -> None:
    kinds = {f"layers.{at}": "a" if at % 4 else "b" for at in range(80)}
    checked = ["layers.0", "layers.1", "layers.36", "layers.39", "layers.76", "layers.79"]
    assert choose_layers(kinds) == checked
    assert choose_layers({"one": 1}) == ["one"]


@pytest.mark.parametrize("num_kinds", [10, 20, 60])
def test_the_number_of_checked_layers_is_bounded_for_many_kinds(num_kinds: int) -> None:
    kinds = {f"layers.{at}": at % num_kinds for at in range(120)}
    checked = choose_layers(kinds)
    assert len(checked) == MAX_LAYERS
    first = [f"layers.{at}" for at in range(min(num_kinds, MAX_LAYERS))]
    assert checked[: len(first)] == first


def _many_layers() -> torch.nn.Module:
    config = tiny_models.CONFIGS["qwen3"].__class__(
        **tiny_models.CONFIGS["qwen3"].to_dict() | {"num_hidden_layers": 5, "layer_types": None}
    )
    return type(tiny_models.make("qwen3"))(config).to(BF16).eval()


def test_beyond_their_time_one_layer_of_each_kind_is_checked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert prepared.prepare(_many_layers(), BF16, CPU).not_proved == ()
    monkeypatch.setattr(paged_trial, "LAYER_LIMIT_S", 0.0)
    monkeypatch.setattr(paged_trial, "WHOLE_LIMIT_S", 0.0)
    loaded = prepared.prepare(_many_layers(), BF16, CPU)
    assert (loaded.attention, loaded.fallbacks) == ("paged", ())
    layers, whole = loaded.not_proved
    assert layers.startswith("model.layers.2, model.layers.4 in all forms: beyond the time limit")
    assert whole.startswith("the whole model after 1 of 3 steps: beyond the time limit")
    for part in loaded.not_proved:
        assert f"checks: not proved: {part}" in caplog.text


def test_a_fault_is_refused_within_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged_trial, "LAYER_LIMIT_S", 0.0)
    change_result(AttentionMetadata, "tile_mask", lambda mask, *_, **__: mask | mask.roll(1, -1))(
        monkeypatch
    )
    assert is_refused(_many_layers(), BF16)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the model's own pass no time: layers that are not checked are left out of it."""
    monkeypatch.setattr(paged_trial, "OWN_PASS_LIMIT_S", 0.0)


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_late_own_pass_leaves_out_unchecked_layers(dtype: torch.dtype) -> None:
    loaded = prepared.prepare(_many_layers().to(dtype), dtype, CPU)
    assert (loaded.attention, loaded.fallbacks) == ("paged", ())
    assert loaded.not_proved == (
        "2 layers from model.layers.1 to model.layers.3 in passes of the whole model: beyond the "
        "time limit of the checks",
    )
    stacks = [part for part in loaded.module.modules() if isinstance(part, DecoderStack)]
    assert [len(stack.layers) for stack in stacks] == [5], "all layers serve"


def _embed_the_next_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    call = ForwardPass._call
    monkeypatch.setattr(ForwardPass, "_call", lambda self, ids, *args: call(self, ids + 1, *args))


BETWEEN_LAYERS: dict[str, Patch] = {
    "logits of the next id": change_result(
        ForwardPass, "run", lambda logits, *_, **__: logits.roll(1, -1)
    ),
    "embeddings of the next id": _embed_the_next_ids,
}


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("fault", BETWEEN_LAYERS)
def test_a_fault_between_layers_is_refused_when_late(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    BETWEEN_LAYERS[fault](monkeypatch)
    assert is_refused(_many_layers(), BF16)


@pytest.mark.usefixtures("late")
def test_layers_that_need_each_other_are_all_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def pass_on(*_: object, **__: object) -> torch.Tensor:
        raise KeyError("what another layer leaves")

    monkeypatch.setattr(skipping, "pass_on", pass_on)
    loaded = prepared.prepare(_many_layers(), BF16, CPU)
    assert (loaded.attention, loaded.not_proved) == ("paged", ())


def test_layers_are_held_together_while_they_are_small() -> None:
    sizes = {"a": MAX_HELD // 2, "b": MAX_HELD // 2, "c": 3 * MAX_HELD, "d": 1}
    assert group_layers(sizes) == [["a", "b"], ["c"], ["d"]]


def test_layers_of_a_kind_that_is_not_checked_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("container.model.checks.layer_choice.MAX_LAYERS", 1)
    loaded = prepared.prepare(tiny_models.make("gemma3"), F32, CPU)
    assert loaded.attention == "paged"
    [part] = loaded.not_proved
    assert part == "model.layers.2: the model has more kinds of layers than are checked"


def test_checks_and_conversion_are_timed_apart(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    times = prepared.prepare(tiny_models.make("llama"), F32, CPU).times
    assert times is not None
    assert min(times.layers_s, times.whole_s, times.converting_s) > 0
    assert f"start: checks took {times.total_s:.1f} s (" in caplog.text


def test_the_time_of_layers_is_not_counted_twice() -> None:
    times = CheckTimes()
    with times.of_whole():
        with times.of_layers():
            sum(range(10**5))
        layers = times.layers_s
    assert times.layers_s == layers > 0
    assert 0 <= times.whole_s < layers


def test_what_is_not_proved_is_among_the_facts_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_models.make("llama").save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(DEMO_MODEL).save_pretrained(tmp_path)
    settings = Settings(
        model=ModelSettings(model_id=str(tmp_path), dtype="float32"),
        memory=MemorySettings(max_batch_total_tokens=4096),
    )
    monkeypatch.setattr(paged_trial, "WHOLE_LIMIT_S", 0.0)
    _, info = load_engine(settings, progress=lambda _: None)
    assert len(info.not_proved) == 1
    assert info.fallbacks == []
