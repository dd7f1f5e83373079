"""Draws the prompts of serving.py: made-up words for the random model, prose for a real one.

A source draws ids, and turns them into the text that tokenizes to exactly these ids. Torch and
transformers are not needed, as the process that measures must not load them.
"""

import random
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from benchmarks.models import bench_model

PROSE = Path(__file__).resolve().parent / "prose.txt"
# A text cut at a token may tokenize otherwise than it was cut; another mixture is drawn then.
MAX_DRAWS = 100


class Source(Protocol):
    """Where the prompts come from."""

    def draw(self, numbers: random.Random, num_tokens: int) -> list[int]:
        """Draw the ids of a prompt that no earlier prompt shares a prefix with."""

    def text(self, token_ids: list[int]) -> str:
        """Return the text of a drawn prompt."""


class MadeUpWords:
    """Words of the random model's own vocabulary, each one token."""

    def draw(self, numbers: random.Random, num_tokens: int) -> list[int]:
        """Draw ids of words."""
        return bench_model.random_prompt(numbers, num_tokens)

    def text(self, token_ids: list[int]) -> str:
        """Write the words."""
        return bench_model.as_text(token_ids)


class Prose:
    """English paragraphs in a new order, below a number that keeps prefixes apart."""

    def __init__(self, model_dir: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._paragraphs = PROSE.read_text().strip().split("\n\n")

    def draw(self, numbers: random.Random, num_tokens: int) -> list[int]:
        """Mix paragraphs and cut them to the number of tokens."""
        for _ in range(MAX_DRAWS):
            token_ids = self._tokenizer.encode(self._mixture(numbers, num_tokens)).ids[:num_tokens]
            if self._tokenizer.encode(self.text(token_ids)).ids == token_ids:
                return token_ids
        raise ValueError(f"no text of exactly {num_tokens} tokens in {MAX_DRAWS} draws")

    def text(self, token_ids: list[int]) -> str:
        """Decode, without the special tokens that the tokenizer itself adds."""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return text

    def _mixture(self, numbers: random.Random, num_tokens: int) -> str:
        parts = [f"{numbers.randrange(10**9)} is the number of this story."]
        # No tokenizer has tokens of 16 characters on the average.
        while sum(map(len, parts)) < 16 * num_tokens:
            parts += numbers.sample(self._paragraphs, len(self._paragraphs))
        return "\n\n".join(parts)
