"""The inputs of prompts with images: cut into chunks, and merged into the rows of a step."""

import pytest
import torch

from container.model.forward_batch import ChunkPlan, ForwardPlan
from container.model.vision.language_model import runs, spans_ahead
from container.model.vision.prompt_inputs import PromptInputs, UnknownInput, step_inputs

COUNT = 10


def _arguments(**others: object) -> dict:
    embeds = torch.arange(COUNT * 2.0).view(1, COUNT, 2)
    return {"inputs_embeds": embeds, "attention_mask": None, "use_cache": False, **others}


def _plan(*chunks: tuple[int, int, int]) -> ForwardPlan:
    """A plan whose chunks have these first rows, last rows and context lengths."""
    plans = [ChunkPlan(start, stop, context_len, []) for start, stop, context_len in chunks]
    return ForwardPlan([], [], [], [], [], plans, 0, [])


def _of_ids(num_rows: int) -> dict:
    return {
        "inputs_embeds": torch.zeros(1, num_rows, 2),
        "position_ids": torch.full((1, num_rows), 70),
    }


def test_rows_of_chunks_get_the_inputs_of_their_tokens() -> None:
    marks = torch.tensor([[False, True, False, True, True] + [False] * 5])
    layers = [torch.tensor([[1.0], [3.0], [4.0]]), torch.tensor([[10.0], [30.0], [40.0]])]
    positions = torch.arange(3 * COUNT).view(3, COUNT)
    prompt = PromptInputs.of(_arguments(marks=marks, layers=layers), positions)
    plan = _plan((1, 4, 5), (4, 6, 2), (6, 8, 9))  # tokens 2 to 5, 0 to 2 and 7 to 9
    inputs = step_inputs(plan, [(prompt, 8), (prompt, 8), (prompt, 7)])
    assert inputs is not None
    merged = inputs.merged_into(_of_ids(8))
    firsts = merged["inputs_embeds"][0, :, 0].tolist()
    assert firsts == [0.0, 4.0, 6.0, 8.0, 0.0, 2.0, 0.0, 0.0]
    assert merged["position_ids"].shape == (3, 1, 8)
    assert merged["position_ids"][1, 0].tolist() == [70, 12, 13, 14, 10, 11, 70, 70]
    assert merged["marks"].tolist() == [[False, False, True, True, False, True, False, False]]
    assert [rows.flatten().tolist() for rows in merged["layers"]] == [[3, 4, 1], [30, 40, 10]]


def test_a_step_without_tokens_of_images_has_no_inputs() -> None:
    prompt = PromptInputs.of(_arguments(), torch.arange(COUNT)[None])
    assert step_inputs(_plan((0, 2, 9)), [(prompt, 7)]) is None
    assert step_inputs(_plan((0, 2, 2)), [(None, 7)]) is None


def test_plain_positions_stay_plain() -> None:
    prompt = PromptInputs.of(_arguments(), torch.arange(COUNT)[None])
    inputs = step_inputs(_plan((1, 3, 4)), [(prompt, COUNT)])
    assert inputs is not None
    assert inputs.merged_into(_of_ids(3))["position_ids"].tolist() == [[70, 2, 3]]


@pytest.mark.parametrize(
    "argument",
    [
        torch.zeros(3, COUNT, 2),  # not a row for each token
        [torch.zeros(4, 2)],  # rows of tokens that nothing marks
    ],
)
def test_an_argument_of_unknown_rows_is_refused(argument: object) -> None:
    with pytest.raises(UnknownInput, match="takes other for images"):
        PromptInputs.of(_arguments(other=argument), torch.arange(COUNT)[None])


def test_masks_of_tokens_that_see_later_ones() -> None:
    mask = torch.full((1, 1, 6, 6), float("-inf")).triu(1)
    assert spans_ahead(mask) == []
    mask[..., 2:5, 2:5] = 0
    assert spans_ahead(mask) == [(2, 5)]
    assert spans_ahead({"full": mask, "sliding": None}) == [(2, 5)]
    assert spans_ahead(mask == 0) == [(2, 5)]
    assert spans_ahead(None) == []


def test_runs_of_flags() -> None:
    assert runs([]) == []
    assert runs([True, False, True, True]) == [(0, 1), (2, 4)]
