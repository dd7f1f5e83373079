"""A stand-in for a model that says anything: tokens at random, as far as a grammar lets it."""

from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from container.engine.structured_output import Constraint
from container.grammar.matcher import GrammarCompiler
from container.text.tokenizer import Tokenizer

END = 2
MAX_TOKENS = 1500


class Babbler:
    """Draws tokens at random, those that close something more often.

    `special` and `plain` tokens are added to the folder's vocabulary.
    """

    def __init__(self, folder: Path, special: list[str] = [], plain: list[str] = []) -> None:  # noqa: B006  # only read
        inner = AutoTokenizer.from_pretrained(folder)
        inner.add_tokens(plain)
        inner.add_tokens(special, special_tokens=True)
        self.tokenizer = Tokenizer(inner)
        texts = [inner.decode([token_id]) for token_id in range(len(inner))]
        closing = np.array([any(c in text for c in '"}]') for text in texts])
        self._weights = np.where(closing, 3.0, 0.0)
        self.compiler = GrammarCompiler(self.tokenizer.serialise, len(texts), [END, 0])

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def say(self, constraint: Constraint, seed: int, max_tokens: int = MAX_TOKENS) -> str | None:
        """What comes out, markers included; None when the budget was too small."""
        random = np.random.default_rng(seed)
        mask = np.zeros(-(-len(self._weights) // 32), np.int32)
        ids: list[int] = []
        while len(ids) < max_tokens:
            constraint.fill(mask)
            allowed = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(self._weights)]
            assert allowed.any()
            noise = random.gumbel(size=len(self._weights))
            token_id = int(np.where(allowed, self._weights + noise, -np.inf).argmax())
            constraint.accept(token_id)
            assert not constraint.error
            if token_id in (END, 0):
                return self._decode(ids)
            ids.append(token_id)
            if constraint.is_complete:
                return self._decode(ids)
        return None

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)
