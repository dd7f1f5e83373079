"""The constraint protocol for structured output; container.grammar implements it."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

import numpy as np
import numpy.typing as npt

# A token bitmask: one bit per vocabulary id, lowest bit first, in 32-bit words.
Mask = npt.NDArray[np.int32]


class Constraint(Protocol):
    """Grammar state of one sequence; advances token by token."""

    @property
    def is_complete(self) -> bool:
        """Whether the grammar allows no further token."""
        ...

    @property
    def error(self) -> str:
        """Why matching failed; empty while it has not."""
        ...

    def fill(self, mask: Mask) -> None:
        """Write the bitmask of the allowed next tokens, [32-bit words]."""
        ...

    def accept(self, token_id: int) -> None:
        """Advance the state by one token."""
        ...

    def copy(self) -> "Constraint":
        """Copy the state for another sequence."""
        ...


# Compiles a grammar's text to a constraint in another thread. The future raises InvalidParameter
# for a grammar that does not compile.
CompileGrammar = Callable[[str], Future[Constraint]]
