"""Compiles grammars to llguidance matchers, in a thread next to the engine's.

Runs in the engine process. The model's tokenizer is converted to llguidance's form once (about a
second for the largest vocabularies), before the first grammar is compiled.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from container.engine.structured_output import Constraint, Mask
from container.errors import InvalidParameter

# Compiled grammars cached for later requests with the same grammar; a few 100 KiB each.
MOST_KEPT = 64


class GrammarMatcher:
    """Grammar state of one sequence; implements the engine's Constraint."""

    def __init__(self, inner: LLMatcher, vocabulary: int) -> None:
        self._inner = inner
        self._vocabulary = vocabulary

    @property
    def is_complete(self) -> bool:
        """Whether the grammar allows no further token."""
        return self._inner.is_stopped()

    @property
    def error(self) -> str:
        """Why matching failed; empty while it has not."""
        return self._inner.get_error()

    def fill(self, mask: Mask) -> None:
        """Write the bitmask of the allowed next tokens that the model has logits for."""
        whole = np.zeros(-(-self._vocabulary // 32), np.int32)
        self._inner.unsafe_compute_mask_ptr(whole.ctypes.data, whole.nbytes)
        mask[:] = whole[: len(mask)]

    def accept(self, token_id: int) -> None:
        """Advance the state by one token; a token that is not allowed sets `error`."""
        self._inner.consume_token(token_id)

    def copy(self) -> Constraint:
        """Copy the state for another sequence."""
        return GrammarMatcher(self._inner.deep_copy(), self._vocabulary)


class GrammarCompiler:
    """Owns the compiled grammars of one model. `compile` may be called from one thread only."""

    def __init__(
        self, load_tokenizer: Callable[[], str], vocabulary: int, end_token_ids: Iterable[int]
    ) -> None:
        """Start converting the tokenizer.

        `load_tokenizer` returns the model's tokenizer.json; `vocabulary` is the number of its ids,
        or of the model's logits if there are more.
        """
        self._load_tokenizer = load_tokenizer
        self._vocabulary = vocabulary
        self._end_token_ids = sorted(end_token_ids)
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        # One thread: an expensive grammar delays other grammars, never the engine's steps.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._tokenizer: Future[LLTokenizer] = self._thread.submit(self._make_tokenizer)

    def check(self) -> None:
        """Wait for the tokenizer. Raises ValueError if llguidance cannot convert it."""
        self._tokenizer.result()

    def compile(self, grammar: str) -> Future[Constraint]:
        """Compile a grammar of container.grammar.spec. The future may raise InvalidParameter."""
        return self._thread.submit(self._compile, grammar)

    def _compile(self, grammar: str) -> Constraint:
        matcher = self._kept.pop(grammar, None)
        if matcher is None:
            matcher = LLMatcher(self._tokenizer.result(), grammar, log_level=0)
        if matcher.is_error():
            raise InvalidParameter(f"grammar is not valid: {matcher.get_error()}")
        self._kept[grammar] = matcher
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return GrammarMatcher(matcher.deep_copy(), self._vocabulary)

    def _make_tokenizer(self) -> LLTokenizer:
        # A model without an end token stops where its grammar ends.
        ends = self._end_token_ids or None
        return LLTokenizer(self._load_tokenizer(), n_vocab=self._vocabulary, eos_token=ends)
