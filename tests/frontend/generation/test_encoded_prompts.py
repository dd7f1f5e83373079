"""Prompts as ids within the model's limits, with errors that name the API's own fields."""

from typing import cast

import pytest
from msgspec.structs import replace

from container.errors import InvalidParameter, PromptTooLong, UnsupportedParameter
from container.frontend.generation.images import Images, fetch_nothing
from container.frontend.generation.offloading import call
from container.frontend.generation.prompts import FieldNames, Prompts
from container.frontend.generation.served_model import ServedModel
from container.images.decoding import ImageLimits
from container.images.sources import ImageSource
from container.messages.engine import EngineInfo
from container.text.tokenizer import Tokenizer
from tests.support.connections import INFO
from tests.support.servers import DEMO_MODEL

TOKENIZER = Tokenizer.from_folder(DEMO_MODEL)
NAMES = FieldNames(prompt="inputs", max_new_tokens="max_new_tokens")
TEXT = "Deep learning is a part of machine learning. "


class LoadedModel:
    """The part of ServedModel that prompts need, once it is loaded."""

    info: EngineInfo = replace(INFO, vocabulary=2048)
    tokenizer = TOKENIZER

    def ready(self) -> tuple[EngineInfo, Tokenizer]:
        return self.info, self.tokenizer


@pytest.fixture
def prompts() -> Prompts:
    images = Images(ImageLimits(), fetch_nothing, call)
    return Prompts(cast(ServedModel, LoadedModel()), images, call)


def test_a_prompt_has_the_tokenizers_ids(prompts: Prompts) -> None:
    for special in (True, False):
        prompt = prompts.prompt(TEXT, NAMES, add_special_tokens=special)
        assert prompt.ids == TOKENIZER.encode(TEXT, add_special_tokens=special)
        assert prompt.num_chars == len(TEXT)


def test_an_empty_prompt_is_refused(prompts: Prompts) -> None:
    with pytest.raises(InvalidParameter, match="`inputs` cannot be empty"):
        prompts.prompt("", NAMES, add_special_tokens=False)


@pytest.mark.parametrize(("times", "given"), [(20, r"\d+"), (5000, "more than 100")])
def test_a_long_prompt_is_refused_with_the_limit(prompts: Prompts, times: int, given: str) -> None:
    with pytest.raises(PromptTooLong, match=rf"`inputs` .*100 tokens\. Given: {given}") as refused:
        prompts.prompt(TEXT * times, NAMES)
    assert refused.value.field == "inputs"


def test_truncate_keeps_the_last_ids(prompts: Prompts) -> None:
    ids = TOKENIZER.encode(TEXT * 50, add_special_tokens=True)
    assert prompts.prompt(TEXT * 50, NAMES, truncate=7).ids == ids[-7:]
    assert prompts.prompt(TEXT * 50, NAMES, truncate=-1).ids == ids[-100:]
    assert prompts.prompt(TEXT, NAMES, truncate=100).ids == TOKENIZER.encode(
        TEXT, add_special_tokens=True
    )


def test_ids_outside_the_models_vocabulary_are_refused(prompts: Prompts) -> None:
    with pytest.raises(InvalidParameter, match="id 2048 of 2048"):
        prompts.check_prompt([1, 2048], NAMES)


def test_images_are_refused_by_a_model_that_reads_text_only(prompts: Prompts) -> None:
    image = ImageSource("https://images.example/a.png", "messages[0]")
    with pytest.raises(UnsupportedParameter, match="reads text only") as refused:
        prompts.check_images([image])
    assert refused.value.field == "messages[0]"
    with pytest.raises(InvalidParameter, match="`truncate` cannot cut a prompt with images"):
        prompts.prompt(TEXT, NAMES, [image], truncate=5)


def test_new_tokens_are_those_that_fit_or_that_are_requested(prompts: Prompts) -> None:
    assert prompts.limit_new_tokens(100, None, NAMES) == 20
    assert prompts.limit_new_tokens(100, 20, NAMES) == 20
    with pytest.raises(PromptTooLong, match=r"must be <= 120\. Given: 100 .* and 21 ") as refused:
        prompts.limit_new_tokens(100, 21, NAMES)
    assert refused.value.field == "max_new_tokens"


def test_words_are_encoded_at_the_start_and_after_a_space(prompts: Prompts) -> None:
    forms = prompts.word_ids(["learning", " learning"])
    texts = [TOKENIZER.decode(ids, skip_special_tokens=False) for ids in forms]
    assert texts == ["learning", " learning"]


def test_pieces_cover_the_text(prompts: Prompts) -> None:
    text = "Malmö is in Sweden. 今天"
    pieces = prompts.pieces(text, "inputs", add_special_tokens=False)
    covered = {at for piece in pieces for at in range(piece.start, piece.stop)}
    assert covered == set(range(len(text.encode())))
    assert prompts.count(text) == len(pieces)


def test_more_messages_than_tokens_are_refused_uncounted(prompts: Prompts) -> None:
    prompts.check_num_messages(100, NAMES)
    with pytest.raises(PromptTooLong, match="101 messages"):
        prompts.check_num_messages(101, NAMES)
