"""Routing to experts in layer checks: near-ties, in which rounding alone chooses other experts.

A router takes the experts with the highest scores. Where two scores are closer than their rounding
errors, a correct pass may take another expert than the model's own pass; the row is then off by an
expert's output, far more than by rounding. Such rows get the experts and weights of the own pass,
so that what is compared is how these are computed. A router that is wrong differs in many rows;
then none is replaced, and the error shows.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

# transformers' name of the module that is called with hidden states, the indexes of their experts
# and the weights of these, all [tokens, ...].
EXPERTS = "experts"
# The largest share of a step's rows that are taken for near-ties; one row always may be.
MAX_NEAR_TIES = 0.25

Arguments = tuple[Any, ...]


class Routing:
    """The experts that a model's own pass chooses for each row, by their module."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self._experts = [
            part
            for layer in layers
            for name, part in layer.named_modules()
            if name.rpartition(".")[2] == EXPERTS and not isinstance(part, nn.ModuleList)
        ]
        self._indexes: dict[int, list[torch.Tensor]] = defaultdict(list)
        self._weights: dict[int, list[torch.Tensor]] = defaultdict(list)

    @property
    def has_experts(self) -> bool:
        """Whether the own pass has chosen experts."""
        return bool(self._indexes)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record the own pass in this context, row by row."""
        with self._hooked(self._record):
            yield

    @contextlib.contextmanager
    def replacing(self, positions: Callable[[], torch.Tensor]) -> Iterator[None]:
        """Replace the choices of near-ties in this context.

        `positions` returns the recorded row of each row of the step that runs, [rows].
        """
        with self._hooked(partial(self._replace_near_ties, positions)):
            yield

    @contextlib.contextmanager
    def _hooked(self, hook: Callable[[nn.Module, Arguments], Arguments | None]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for experts in self._experts:
                stack.callback(experts.register_forward_pre_hook(hook).remove)
            yield

    def _record(self, experts: nn.Module, args: Arguments) -> None:
        if len(args) == 3 and not args[1].is_floating_point():
            self._indexes[id(experts)].append(args[1].clone())
            self._weights[id(experts)].append(args[2].clone())

    def _replace_near_ties(
        self, positions: Callable[[], torch.Tensor], experts: nn.Module, args: Arguments
    ) -> Arguments | None:
        if id(experts) not in self._indexes:
            return None
        hidden_states, indexes, weights = args
        at = positions().to(indexes.device)
        own = torch.cat(self._indexes[id(experts)])[at]
        own_weights = torch.cat(self._weights[id(experts)])[at]
        is_other = (indexes.sort(-1).values != own.sort(-1).values).any(-1, keepdim=True)
        if is_other.sum() > max(1, MAX_NEAR_TIES * len(is_other)):
            return None
        weights = torch.where(is_other, own_weights.to(weights.dtype), weights)
        return hidden_states, torch.where(is_other, own, indexes), weights
