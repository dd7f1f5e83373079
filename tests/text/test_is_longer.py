"""Whether a text has too many tokens is known from its beginning."""

import pytest

from container.text.tokenizer import Tokenizer
from tests.support.servers import DEMO_MODEL


class Counting(Tokenizer):
    """Counts the characters that are encoded."""

    num_encoded = 0

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        self.num_encoded += len(text)
        return super().encode(text, add_special_tokens=add_special_tokens)


@pytest.fixture(scope="module")
def tokenizer() -> Counting:
    return Counting(Tokenizer.from_folder(DEMO_MODEL).inner)


def test_only_the_beginning_of_a_long_text_is_encoded(tokenizer: Counting) -> None:
    text = "the quick brown fox " * 50_000
    tokenizer.num_encoded = 0
    assert tokenizer.is_longer(text, 500)
    assert tokenizer.num_encoded < 50_000


@pytest.mark.parametrize("text", ["a b c d ", "   ", "word", "\n\n", "ä€𝄞"])
@pytest.mark.parametrize("repeats", [1, 100, 5000])
def test_no_text_that_fits_is_called_longer(tokenizer: Counting, text: str, repeats: int) -> None:
    num_tokens = len(tokenizer.encode(text * repeats, add_special_tokens=True))
    assert not tokenizer.is_longer(text * repeats, num_tokens)


@pytest.mark.parametrize(
    "unit", ["the quick brown fox ", "word\n", "\u4f60\u597d", "x = [1, 2];  "]
)
@pytest.mark.parametrize("num_tokens", [1, 7, 50])
def test_the_end_of_a_long_text_has_its_ids_of_the_whole(
    tokenizer: Tokenizer, unit: str, num_tokens: int
) -> None:
    text = unit * 4000
    whole = tokenizer.encode(text, add_special_tokens=True)
    end = tokenizer.encode_end(text, num_tokens, add_special_tokens=True)
    assert end == whole[-num_tokens:]


def test_only_the_end_of_a_long_text_without_spaces_is_encoded(tokenizer: Counting) -> None:
    tokenizer.num_encoded = 0
    assert len(tokenizer.encode_end("x1y2" * 50_000 + " end", 5, add_special_tokens=True)) == 5
    assert tokenizer.num_encoded < 50_000


def test_the_end_of_a_short_text_is_all_of_it(tokenizer: Tokenizer) -> None:
    whole = tokenizer.encode("the fox", add_special_tokens=True)
    assert tokenizer.encode_end("the fox", 100, add_special_tokens=True) == whole
