"""Passes of the whole model within a time limit: beyond it, layers are left out of them.

A pass of the whole model finds faults between layers: in the embedding, in positions, in what a
layer is given of the cache, in the last norm and the output layer. A few layers of each kind find
them as well as all do. So when the model's own pass is late, the layers that are not checked return
their input from there on, and do so in all passes that are compared with this one.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from container.model.reference_check import replaced


class LayerSkips:
    """The decoder layers that passes of the whole model leave out."""

    def __init__(self, layers: Iterable[str], checked: Iterable[str]) -> None:
        """Only `layers` (names, in order) that are not `checked` may be left out."""
        self.names: list[str] = []
        self._may_skip = [name for name in layers if name not in set(checked)]
        self._layers = list(layers)
        self._ran: set[str] = set()
        self._returns_tensors = True

    @contextlib.contextmanager
    def choosing(self, module: nn.Module, limit_s: float) -> Iterator[None]:
        """Leave out the layers that a pass in this context reaches after `limit_s` seconds.

        The steps of one pass agree: a layer that has run is not left out later.
        """
        late = time.perf_counter() + limit_s
        with contextlib.ExitStack() as stack:
            for name in self._layers:
                layer = module.get_submodule(name)
                forward = partial(self._run_or_skip, name, late, layer.forward)
                stack.enter_context(replaced(layer, "forward", forward))
            yield

    @contextlib.contextmanager
    def skipping(self, module: nn.Module) -> Iterator[None]:
        """Leave the same layers out in this context, in a model whose layers may be stacked."""
        with contextlib.ExitStack() as stack:
            for parent in dict.fromkeys(name.rpartition(".")[0] for name in self.names):
                layers = module.get_submodule(parent)
                left_out = [
                    int(last)
                    for before, _, last in (name.rpartition(".") for name in self.names)
                    if before == parent
                ]
                children: list[Any] = list(layers.children())
                if len(children) == 1 and hasattr(children[0], "without"):
                    shorter = children[0].without(left_out)
                    stack.enter_context(replaced(children[0], "forward", shorter.forward))
                    continue
                for index in left_out:
                    stack.enter_context(replaced(children[index], "forward", pass_on))
            yield

    def _run_or_skip(
        self, name: str, late: float, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        is_late = time.perf_counter() > late and self._returns_tensors
        if is_late and name in self._may_skip and name not in self._ran:
            self._may_skip.remove(name)
            self.names.append(name)
        if name in self.names:
            return pass_on(*args, **kwargs)
        self._ran.add(name)
        output = forward(*args, **kwargs)
        self._returns_tensors &= isinstance(output, torch.Tensor)
        return output


def pass_on(hidden_states: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    """Return a layer's input."""
    return hidden_states
