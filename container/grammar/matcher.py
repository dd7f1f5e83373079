"""Compiled grammars: llguidance matchers, made in a thread beside the engine's own.

Runs in the engine process. The model's tokenizer is turned into llguidance's own form once (about
a second for the largest vocabularies), before the first grammar is compiled.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from llguidance import LLMatcher, LLTokenizer

from container.engine.structured_output import Constraint, Mask
from container.errors import InvalidParameter

# Compiled grammars kept for the next request with the same one; a few 100 KiB each.
MOST_KEPT = 64


class GrammarMatcher:
    """One sequence's place in its grammar; implements the engine's Constraint."""

    def __init__(self, inner: LLMatcher) -> None:
        self._inner = inner

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow any more."""
        return self._inner.is_stopped()

    @property
    def error(self) -> str:
        """Why it cannot go on; empty while all is well."""
        return self._inner.get_error()

    def fill(self, mask: Mask) -> None:
        """Write which tokens may come next, one bit each; the array must be contiguous."""
        self._inner.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)

    def accept(self, token_id: int) -> None:
        """Go on by a token; one that is not allowed becomes the error."""
        self._inner.consume_token(token_id)

    def copy(self) -> Constraint:
        """The same state for another sequence."""
        return GrammarMatcher(self._inner.deep_copy())


class GrammarCompiler:
    """Owns the compiled grammars of one model. `compile` may be called from one thread only."""

    def __init__(
        self, load_tokenizer: Callable[[], str], vocabulary: int, end_token_ids: Iterable[int]
    ) -> None:
        """`load_tokenizer` gives the model's tokenizer.json; `vocabulary` is that of its logits."""
        self._load_tokenizer = load_tokenizer
        self._vocabulary = vocabulary
        self._end_token_ids = sorted(end_token_ids)
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        # One thread: a costly grammar delays other grammars, never the engine's steps.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._tokenizer: Future[LLTokenizer] = self._thread.submit(self._make_tokenizer)

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
        return GrammarMatcher(matcher.deep_copy())

    def _make_tokenizer(self) -> LLTokenizer:
        # Without an end token of its own, a model ends where its grammar does.
        ends = self._end_token_ids or None
        return LLTokenizer(self._load_tokenizer(), n_vocab=self._vocabulary, eos_token=ends)
