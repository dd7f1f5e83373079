"""Grammars without processes: they count tokens, and answer when a test wants them to."""

from collections.abc import Callable

from container.engine.sequence import Constraint, Mask
from container.errors import InvalidParameter, ServingError


class Countdown:
    """Ends after a number of tokens, or fails there. Its grammar is `ends 3` or `fails 3`."""

    def __init__(self, grammars: "ScriptedGrammars", grammar: str, accepted: int = 0) -> None:
        self.grammars = grammars
        self.grammar = grammar
        self.accepted = accepted
        self.is_advanced = True
        self.is_compiled = True
        self.has_mask = True
        self.is_closed = False
        self.refusal: ServingError | None = None

    @property
    def is_ready(self) -> bool:
        return self.is_compiled and (self.has_mask or self.is_complete or self.error is not None)

    @property
    def _is_over(self) -> bool:
        return self.is_advanced and self.accepted >= int(self.grammar.split()[1])

    @property
    def is_complete(self) -> bool:
        return self._is_over and self.grammar.startswith("ends")

    @property
    def error(self) -> ServingError | None:
        if self._is_over and self.grammar.startswith("fails"):
            return InvalidParameter("too complex")
        return self.refusal

    def fill(self, mask: Mask) -> None:
        assert self.is_ready, "a bitmask that is late"
        mask[:] = -1

    def accept(self, token_id: int) -> None:
        assert self.is_advanced
        assert self.has_mask, "a token without a bitmask"
        self.accepted += 1
        self.is_advanced = self.has_mask = False
        self.grammars.answer_some()

    def answer(self) -> None:
        """Answer the next open constraint: the result of the token, then the bitmask."""
        if not self.is_advanced:
            self.is_advanced = True
        else:
            self.has_mask = True

    def copy(self) -> "Countdown":
        return self.grammars.add(Countdown(self.grammars, self.grammar, self.accepted))

    def close(self) -> None:
        self.is_closed = True
        self.grammars.constraints.remove(self)


class ScriptedGrammars:
    """Compiles a grammar when the test says so; `answers`: whether a constraint answers now."""

    def __init__(self, answers: Callable[[], bool] = lambda: True) -> None:
        self.answers = answers
        self.asked: list[Countdown] = []
        self.constraints: list[Countdown] = []

    def compile(self, grammar: str) -> Constraint:
        constraint = self.add(Countdown(self, grammar))
        constraint.is_compiled = False
        self.asked.append(constraint)
        return constraint

    def wait(self, is_done: Callable[[], bool], timeout_s: float) -> None:
        self.answer_some()

    def answer_some(self) -> None:
        for constraint in self.constraints:
            while not (constraint.is_advanced and constraint.has_mask) and self.answers():
                constraint.answer()

    def add(self, constraint: Countdown) -> Countdown:
        self.constraints.append(constraint)
        return constraint

    def finish_one(self, refusal: ServingError | None = None) -> None:
        """Compile the grammar that was asked for first."""
        if self.asked:
            constraint = self.asked.pop(0)
            constraint.is_compiled, constraint.refusal = True, refusal
