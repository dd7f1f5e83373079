"""Gives the rows of a step the embeddings of their positions.

Decoders with absolute positions count the tokens in their cache, which is one number for all rows.
Its outputs tell which module embeds positions; a table of these outputs replaces the module.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch
from torch import nn


class PositionTable:
    """The outputs of a decoder's position embedding: `rows` is [positions, width].

    `dims` is the number of dimensions of the module's output: [tokens, width], or a batch of it.
    """

    def __init__(self, embedding: nn.Module, rows: torch.Tensor, dims: int) -> None:
        self._embedding = embedding
        self._rows = rows
        self._dims = dims
        self._thread = threading.local()
        self._original: Callable[..., object] = embedding.forward

    def install(self) -> None:
        """Make the module return the rows at the positions of a step, where there is one."""
        vars(self._embedding)["forward"] = self._forward

    def uninstall(self) -> None:
        """Undo `install`."""
        vars(self._embedding).pop("forward", None)

    @contextlib.contextmanager
    def at(self, positions: torch.Tensor) -> Iterator[None]:
        """Give this thread's rows, in this context, the positions [rows]."""
        self._thread.positions = positions
        try:
            yield
        finally:
            self._thread.positions = None

    def _forward(self, *args: object, **kwargs: object) -> object:
        positions: torch.Tensor | None = getattr(self._thread, "positions", None)
        if positions is None:
            return self._original(*args, **kwargs)
        rows = self._rows.index_select(0, positions)
        return rows[None] if self._dims == 3 else rows
