"""How checks measure: errors in multiples of the model's own, and results that are no numbers."""

from typing import Any

import pytest
import torch

from container.model.attention import paged
from container.model.attention.metadata import AttentionMetadata
from container.model.execution.forward_pass import ForwardPass
from container.model.reference_check import Accuracy, in_precision, measure
from tests.support.models import tiny_models
from tests.support.models.faults import BF16, F32, Patch, change_result, is_refused


def test_an_outlier_channel_hides_no_error_in_another() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(30, 64, generator=generator)
    exact[:, 0] *= 10_000
    own = exact.to(BF16).float()
    assert measure(exact, own, own, BF16).is_accepted
    served = own.clone()
    served[7, 5] += 0.5  # far below the outlier's rounding error
    assert not measure(exact, own, served, BF16).is_accepted


def test_nothing_is_accepted_that_is_not_a_number() -> None:
    exact = torch.randn(30, 64, generator=torch.Generator().manual_seed(0))
    own = exact.to(BF16).float()
    assert not measure(exact, own, own * torch.nan, BF16).is_accepted


def _not_a_number(layer: int) -> Patch:
    """Make the outputs of one layer NaN, of the served form alone."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        attend = paged.attend

        def changed(step: AttentionMetadata, index: int, *args: Any) -> torch.Tensor:
            out = attend(step, index, *args)
            return out * torch.nan if index == layer else out

        monkeypatch.setattr(paged, "attend", changed)

    return patch


@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_that_is_not_a_number_is_refused(
    layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _not_a_number(layer)(monkeypatch)
    assert is_refused(tiny_models.make("gpt_neox", BF16), BF16)


def test_logits_that_are_not_a_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    change_result(ForwardPass, "run", lambda logits, *_, **__: logits * torch.nan)(monkeypatch)
    assert is_refused(tiny_models.make("llama", BF16), BF16)


def test_rows_of_few_channels_are_compared_together() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(8, 1, generator=generator)
    own = exact.to(BF16).float()
    assert measure(exact, own, own, BF16).is_accepted
    assert not measure(exact, own, exact * 1.1, BF16).is_accepted


def test_an_exact_pass_leaves_the_model_as_it_was() -> None:
    model = tiny_models.make("qwen3_moe", BF16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.tensor([[0, 5, 9]])
    with torch.inference_mode():
        own = model(input_ids=ids).logits
        with in_precision(model, F32):
            exact = model(input_ids=ids).logits
        again = model(input_ids=ids).logits
    assert exact.dtype == F32
    assert 0 < (exact - own).abs().max() < 0.1 * exact.abs().max()
    assert torch.equal(own, again)
    assert all("forward" not in vars(module) for module in model.modules())
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_accuracy_says_how_far_off_a_result_is() -> None:
    printed = str(Accuracy(1.23, 9.87, BF16))
    assert printed == "1.2 times the model's own rounding error, 9.9 at worst"
