"""A view of some slots' states for a mixer's call, with the methods of transformers' caches."""

import torch

from container.model.states.cache import StateCache, StateKey, StateKind


class SlotView:
    """The states of the sequences in one call, [sequences, ...] each.

    `rows` are rows of the state cache: a slice, which is updated in place, or ids, whose states are
    gathered on the first read and stored by `write_back`. Without `has_states` the sequences begin
    with this call, and what is in their rows is not read.
    """

    def __init__(self, cache: StateCache, rows: slice | torch.Tensor, *, has_states: bool) -> None:
        self._cache = cache
        self._rows = rows
        self._has_states = has_states
        self._loaded: dict[StateKey, torch.Tensor] = {}

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        """Return the last inputs of a convolution, which the mixer may change in place."""
        key = StateKind.CONV, layer_idx, state_idx
        return self._load(key) if self._has_states else None

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        """Return the state of a recurrence, which the mixer may change in place."""
        key = StateKind.RECURRENT, layer_idx, state_idx
        return self._load(key) if self._has_states else None

    def update_conv_state(
        self, conv_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **_: object
    ) -> torch.Tensor:
        """Append new inputs, [sequences, channels, tokens]; return the old ones and these."""
        stored = self._load((StateKind.CONV, layer_idx, state_idx))
        size = stored.shape[-1]
        if self._has_states:
            conv_states = torch.cat([stored, conv_states], dim=-1)
        elif conv_states.shape[-1] < size:
            conv_states = torch.nn.functional.pad(conv_states, (size - conv_states.shape[-1], 0))
        stored.copy_(conv_states[..., -size:])
        return conv_states

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **_: object
    ) -> torch.Tensor:
        """Store the state of a recurrence after the call's last token."""
        stored = self._load((StateKind.RECURRENT, layer_idx, state_idx))
        return stored.copy_(recurrent_states)

    def is_recording_past(self, layer_idx: int) -> bool:
        """Return False: earlier states are overwritten."""
        return False

    def write_back(self) -> None:
        """Store the gathered states in their rows."""
        if isinstance(self._rows, torch.Tensor):
            for key, states in self._loaded.items():
                self._cache.tensors[key].index_copy_(0, self._rows, states)

    def save(self, row: int) -> None:
        """Copy the states of the only sequence to another row of the cache."""
        for key, states in self._loaded.items():
            self._cache.tensors[key][row].copy_(states[0])

    def _load(self, key: StateKey) -> torch.Tensor:
        states = self._loaded.get(key)
        if states is None:
            tensor = self._cache.tensors[key]
            rows = self._rows
            states = tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows)
            self._loaded[key] = states
        return states
