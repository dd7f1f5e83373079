"""Batches the mixers of a recurrent model: the modules that read and update its states.

The model's own code computes; only the arguments of a mixer's call change. The model hands it all
rows of a pass, [1, rows, channels], without a cache; the mixer gets one piece of them at a time,
and a view of the piece's states in place of the model's cache.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from container.model.forward_batch import ForwardPlan
from container.model.states.cache import StateCache, StateShape
from container.model.states.pieces import SEGMENT, Piece, split_pass
from container.model.states.slot_view import SlotView

# Arguments of the whole pass that mean nothing to a mixer, which sees no padding.
DROPPED = ("step", "attention_mask")


class RowScope(Protocol):
    """Knows something of each row of a pass, which linear layers in a mixer ask for."""

    def narrow(self, rows: slice | torch.Tensor, *, is_decode: bool) -> None:
        """Restrict it to these rows of the pass, in this order."""
        ...

    def widen(self) -> None:
        """Lift the restriction."""
        ...


@dataclass(frozen=True, slots=True)
class MixerCall:
    """How a model calls a mixer: where its hidden states and its cache are among the arguments.

    A number is a position, a string a keyword. `name` is the module's.
    """

    name: str
    hidden: int | str
    cache: int | str

    def with_arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], hidden: torch.Tensor, cache: SlotView
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments for one piece."""
        new_args = list(args)
        new_kwargs = {name: value for name, value in kwargs.items() if name not in DROPPED}
        for argument, value in ((self.hidden, hidden), (self.cache, cache)):
            if isinstance(argument, int):
                new_args[argument] = value
            else:
                new_kwargs[argument] = value
        return new_args, new_kwargs


@dataclass(slots=True)
class _Step:
    """The pieces of the current pass, and the states that they belong to."""

    pieces: list[Piece]
    cache: StateCache


@dataclass(slots=True)
class RecurrentMixers:
    """The mixers of one model, and the pass that they compute. Outside of a pass they are as usual.

    `shapes` are those of a sequence's states. Unless a mixer `continues`, a prompt's first segment
    is one call, and each later token another one.
    """

    calls: list[MixerCall]
    shapes: list[StateShape]
    continues: bool = True
    scopes: list[RowScope] = field(default_factory=list)
    _step: _Step | None = None
    _originals: dict[str, Callable[..., Any] | None] = field(default_factory=dict)

    @property
    def layers(self) -> set[int]:
        """The layers with states."""
        return {shape.key[1] for shape in self.shapes}

    def install(self, module: nn.Module) -> None:
        """Make the model call its mixers piece by piece."""
        for call in self.calls:
            mixer = module.get_submodule(call.name)
            self._originals[call.name] = vars(mixer).get("forward")
            setattr(mixer, "forward", partial(self._run, call, mixer.forward))  # noqa: B010

    def uninstall(self, module: nn.Module) -> None:
        """Undo `install`."""
        for name, forward in self._originals.items():
            mixer = module.get_submodule(name)
            delattr(mixer, "forward")
            if forward is not None:
                setattr(mixer, "forward", forward)  # noqa: B010
        self._originals.clear()

    def begin(
        self, plan: ForwardPlan, cache: StateCache, device: torch.device, segment: int = SEGMENT
    ) -> None:
        """Begin a pass over the states of `cache`."""
        pieces = split_pass(plan, device, segment, continues=self.continues)
        self._step = _Step(pieces, cache)

    def end(self) -> None:
        """End the pass."""
        self._step = None

    def _run(self, call: MixerCall, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        step = self._step
        if step is None:
            return forward(*args, **kwargs)
        try:
            return self._run_pieces(step, call, forward, args, kwargs)
        finally:
            for scope in self.scopes:
                scope.widen()

    def _run_pieces(
        self,
        step: _Step,
        call: MixerCall,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        rows = args[call.hidden] if isinstance(call.hidden, int) else kwargs[call.hidden]
        out: torch.Tensor | None = None
        result: Any = None
        for piece in step.pieces:
            view = SlotView(step.cache, piece.states, has_states=piece.has_states)
            for scope in self.scopes:
                scope.narrow(piece.rows, is_decode=piece.is_decode)
            piece_args, piece_kwargs = call.with_arguments(args, kwargs, piece.take(rows), view)
            result = forward(*piece_args, **piece_kwargs)
            view.write_back()
            if piece.snapshot is not None:
                view.save(piece.snapshot)
            results = result if isinstance(result, torch.Tensor) else result[0]
            if out is None:
                out = results.new_zeros(1, rows.shape[1], results.shape[-1])
            piece.put(results, out)
        return out if isinstance(result, torch.Tensor) else (out, *result[1:])
