"""A stand-in for a model that says anything: tokens at random, as far as a grammar lets it."""

from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from container.engine.sequence import Constraint
from container.errors import ServingError
from container.grammar.client import GrammarClient
from container.grammar.protocol import ForkServerArgs, GrammarLimits
from container.grammar.shape import MessageShape, encode_shape
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
        self.grammars = GrammarClient(
            ForkServerArgs(
                self.tokenizer.serialise(),
                len(texts),
                [0, END],
                self.tokenizer.added_tokens,
                GrammarLimits(timeout_s=30.0),
            )
        )

    def close(self) -> None:
        self.grammars.close()

    def compile(self, shape: MessageShape) -> Constraint:
        """Raises what the grammar's process refuses it with."""
        constraint = self.grammars.compile(encode_shape(shape))
        self._wait(constraint)
        if constraint.error is not None:
            raise constraint.error
        return constraint

    def accept(self, constraint: Constraint, token_id: int) -> ServingError | None:
        """Advance by a token and wait; return what is wrong with it."""
        constraint.accept(token_id)
        self._wait(constraint)
        return constraint.error

    def _wait(self, constraint: Constraint) -> None:
        self.grammars.wait(lambda: constraint.is_ready and constraint.is_advanced, 40.0)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def say(self, constraint: Constraint, seed: int, max_tokens: int = MAX_TOKENS) -> str | None:
        """Return the text, markers included; None when the budget was too small."""
        random = np.random.default_rng(seed)
        mask = np.zeros(-(-len(self._weights) // 32), np.int32)
        ids: list[int] = []
        while len(ids) < max_tokens:
            constraint.fill(mask)
            allowed = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(self._weights)]
            assert allowed.any()
            noise = random.gumbel(size=len(self._weights))
            token_id = int(np.where(allowed, self._weights + noise, -np.inf).argmax())
            if token_id in (END, 0):
                return self._decode(ids)
            error = self.accept(constraint, token_id)
            assert error is None, error.message
            ids.append(token_id)
            if constraint.is_complete:
                return self._decode(ids)
        return None

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)
