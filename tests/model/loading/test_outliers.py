"""The models with outliers that tests use have what trained models have."""

import pytest
import torch
from transformers import PreTrainedModel

from tests.support.models import outliers, tiny_models

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma3", "qwen3_moe"]
IDS = torch.tensor([[outliers.SINK_TOKEN, *range(20, 60)]])


def _run(model: PreTrainedModel):
    with torch.inference_mode():
        return model(input_ids=IDS, output_hidden_states=True, output_attentions=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_some_activations_are_massive(name: str) -> None:
    output = _run(outliers.inject(tiny_models.make(name)))
    assert output.logits.isfinite().all()
    for states in output.hidden_states[:-1]:  # the last ones are normed
        sizes = states[0].abs()
        assert sizes.max() / sizes.median() > 50
        assert sizes[1:].max() / sizes[1:].median() > 50, "not only the sink's"
    plain = _run(tiny_models.make(name)).hidden_states[1][0].abs()
    assert plain.max() / plain.median() < 50


@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_token_is_a_sink(name: str) -> None:
    before = _run(tiny_models.make(name)).attentions
    after = _run(outliers.inject(tiny_models.make(name))).attentions
    for plain, sunk in zip(before, after, strict=True):
        reach = slice(2, 8)  # the first token is within all windows
        assert sunk[0, :, reach, 0].mean() > 0.5
        assert plain[0, :, reach, 0].mean() < 0.5


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_keep_their_size(name: str) -> None:
    plain = _run(tiny_models.make(name)).logits[0, 1:].std()
    injected = _run(outliers.inject(tiny_models.make(name))).logits[0, 1:].std()
    assert 0.2 < injected / plain < 5


# Random layers of these put out hundreds in all channels, so that outliers stand out less.
LARGE_EVERYWHERE = {
    "pegasus", "blenderbot", "gpt_neox", "mpt", "falcon", "falcon_alibi", "gptj",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted({*tiny_models.SERVED_CONFIGS} - LARGE_EVERYWHERE))
def test_enlarged_families_have_massive_activations(name: str) -> None:
    model = outliers.enlarge(tiny_models.make(name))
    with torch.inference_mode():
        output = outliers.run(model, output_hidden_states=True)
    logits = output.logits[0]
    assert logits.isfinite().all()
    assert logits.std(0).median() > 0.05, "the tokens still matter"
    decodes = "decoder_hidden_states" in output
    states = output.decoder_hidden_states if decodes else output.hidden_states
    for layer in states[1:-1]:  # the last ones are normed
        sizes = layer[0].abs()
        assert sizes.max() / sizes.median() > 50
        assert sizes[1:].max() / sizes[1:].median() > 20, "not only the first token's"
