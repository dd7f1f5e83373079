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
