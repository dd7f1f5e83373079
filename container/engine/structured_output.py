"""What the engine needs of a grammar; container.grammar implements it, tests script one."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

import numpy as np
import numpy.typing as npt

# One bit per token of the vocabulary, the lowest first, in words of 32 bits.
Mask = npt.NDArray[np.int32]


class Constraint(Protocol):
    """How far one sequence has come in its grammar; follows it token by token."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow any more."""
        ...

    @property
    def error(self) -> str:
        """Why it cannot go on; empty while all is well."""
        ...

    def fill(self, mask: Mask) -> None:
        """Write which tokens may come next, [words of 32 bits]."""
        ...

    def accept(self, token_id: int) -> None:
        """Go on by a token."""
        ...

    def copy(self) -> "Constraint":
        """The same state for another sequence."""
        ...


# From a grammar's text to its constraint, made in another thread. The future raises
# InvalidParameter for a grammar that cannot be followed.
CompileGrammar = Callable[[str], Future[Constraint]]
