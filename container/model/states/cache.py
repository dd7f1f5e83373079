"""The state cache: the convolution and recurrent states of every running sequence.

A layer's state is [num_slots + 1, ...]: the states of slot `s` are in row `s + 1`, and row 0 is the
scratch row of padding. Slots come from the engine; a sequence's first tokens overwrite what an
earlier sequence left in its slot.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import torch

# The row that padding reads and writes.
SCRATCH_ROW = 0


class StateKind(StrEnum):
    """Inputs that a convolution still needs, or the state of a recurrence."""

    CONV = "conv"
    RECURRENT = "recurrent"


# A layer's index and the number of its state, since a layer may have several of a kind.
StateKey = tuple[StateKind, int, int]


@dataclass(frozen=True, slots=True)
class StateShape:
    """Shape and dtype of one state of one sequence."""

    key: StateKey
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes of one sequence's state."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def bytes_per_sequence(shapes: list[StateShape]) -> int:
    """State bytes of one sequence over all layers."""
    return sum(shape.num_bytes for shape in shapes)


class StateCache:
    """Owns the states; written and read only within a forward pass."""

    def __init__(
        self,
        shapes: list[StateShape],
        *,
        num_slots: int,
        device: torch.device,
        least_dtype: torch.dtype | None = None,
    ) -> None:
        """Create the tensors; `least_dtype` widens the states of a pass in the exact format."""
        self.tensors = {
            shape.key: torch.zeros(
                (num_slots + 1, *shape.shape),
                dtype=torch.promote_types(shape.dtype, least_dtype or shape.dtype),
                device=device,
            )
            for shape in shapes
        }

    def copy_slots(self, copies: Iterable[tuple[int, int]]) -> None:
        """Copy all states from slot to slot, in order: (source, target)."""
        for source, target in copies:
            for tensor in self.tensors.values():
                tensor[state_row(target)].copy_(tensor[state_row(source)])


def state_row(slot: int) -> int:
    """Return the row of a slot's states; a negative slot is padding's."""
    return SCRATCH_ROW if slot < 0 else slot + 1
