"""Attention functions that serve a probe only are not left with transformers."""

import pytest
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from container.model.attention import recorder
from tests.support.models import tiny_models
from tests.support.models.prepared import prepare


def _registered() -> set[str]:
    return {*ALL_ATTENTION_FUNCTIONS, *ALL_MASK_ATTENTION_FUNCTIONS}


@pytest.mark.parametrize("name", ["llama_short", "t5"])
def test_a_prepared_model_leaves_no_probe_registered(name: str) -> None:
    model = prepare(tiny_models.make(name), torch.float32, torch.device("cpu"))
    assert model.attention == "paged"
    assert not any("probe" in name or "positions" in name for name in _registered())


def test_functions_are_removed_when_the_block_fails() -> None:
    before = _registered()
    try:
        with recorder.registered("for a test", print, print):
            assert _registered() == before | {"for a test"}
            raise ZeroDivisionError
    except ZeroDivisionError:
        assert _registered() == before
