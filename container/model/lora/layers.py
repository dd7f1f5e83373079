"""LoRA layers: apply the updates of different adapters, and of none, within one batch.

All loaded adapters share one pair of matrices for each layer: A [sum of ranks, in] and B [out, sum
of ranks]. A row is multiplied with A, the columns of other adapters are set to zero, and the
result is multiplied with B:

    y = W x + B (mask * (A x))

So a layer costs three more operations for any number of adapters in a batch, and a row without an
adapter gets an exact zero added: its bits do not change. Forward hooks on the layers add the
updates; they exist only while adapters are loaded, and skip a batch without adapters.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from container.engine.adapters import NO_ADAPTER
from container.model.async_copy import send
from container.model.layers.cpu_linear import CpuLinear, LinearFactory
from container.model.layers.linear import FastLinear, MergedLinearView, PackedLinear
from container.model.lora.checkpoint import LoraWeights, Weights
from container.model.vision.language_model import language_modules

Linear = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class LoraSlice:
    """A layer of the model, and its slice of the outputs of the linear that computes it."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class LoraTarget:
    """A linear of the model as it runs: one layer, or several merged ones with the same input."""

    linear: nn.Module
    inputs: int
    parts: list[LoraSlice]


class LoraLayer:
    """The updates of all adapters to one linear: one A for all its parts, one B for each."""

    def __init__(
        self, target: LoraTarget, columns: Mapping[int, slice], adapters: Mapping[int, Weights],
        num_columns: int, pack: Callable[[torch.Tensor], Linear],
    ) -> None:  # fmt: skip
        names = {name for weights in adapters.values() for name in weights}
        self.parts = [part for part in target.parts if part.name in names]
        self.num_columns = num_columns
        a = torch.zeros(len(self.parts), num_columns, target.inputs)
        self.b: list[Linear] = []
        for index, part in enumerate(self.parts):
            b = torch.zeros(part.stop - part.start, num_columns)
            for number, weights in adapters.items():
                low: LoraWeights | None = weights.get(part.name)
                if low is None:
                    continue
                first = columns[number].start
                a[index, first : first + low.a.shape[0]] = low.a
                b[:, first : first + low.a.shape[0]] = low.b
            self.b.append(pack(b))
        self.a = pack(a.view(-1, target.inputs))

    def add_to(self, out: torch.Tensor, rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Add the adapters' updates for `rows`, [..., in], to `out`, [..., out].

        `mask` is [rows, columns], for all rows in order.
        """
        low = self.a(rows).unflatten(-1, (len(self.parts), self.num_columns))
        # Not a product with the mask: another adapter's overflow times zero would be NaN.
        low = torch.where(mask.view(*rows.shape[:-1], 1, -1), low, 0)
        for index, part in enumerate(self.parts):
            # The packed linear layers need contiguous rows.
            out[..., part.start : part.stop] += self.b[index](low[..., index, :].contiguous())
        return out


@dataclass(frozen=True, slots=True)
class LoraStack:
    """The updates of a set of adapters: each adapter's columns, and a layer for each linear."""

    columns: Mapping[int, slice]
    num_columns: int
    layers: list[tuple[LoraTarget, LoraLayer]]


class LoraLayers:
    """Owns the hooks on a model's linear layers and the mask of the current batch."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> None:
        self._targets = find_lora_targets(model)
        self._dtype = dtype
        self._device = device
        self._is_packed = any(
            isinstance(target.linear, PackedLinear | CpuLinear) for target in self._targets
        )
        cpu_linears = [t.linear for t in self._targets if isinstance(t.linear, CpuLinear)]
        self._linears = LinearFactory(cpu_linears[0].kernels if cpu_linears else None)
        self._columns: Mapping[int, slice] = {}
        self._num_columns = 0
        self._mask: torch.Tensor | None = None
        self._mask_of_pass: torch.Tensor | None = None
        self._handles: list[RemovableHandle] = []

    @property
    def dtype(self) -> torch.dtype:
        """The format of the updates."""
        return self._dtype

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(in, out) of every layer that an adapter can change."""
        return {
            part.name: (target.inputs, part.stop - part.start)
            for target in self._targets
            for part in target.parts
        }

    def build(self, adapters: Mapping[int, Weights]) -> LoraStack:
        """Build the updates of these adapters, by number; takes long, and changes nothing."""
        columns, num_columns = {}, 0
        for number, weights in adapters.items():
            rank = max((low.a.shape[0] for low in weights.values()), default=0)
            columns[number] = slice(num_columns, num_columns + rank)
            num_columns += rank
        named = {name for weights in adapters.values() for name in weights}
        with torch.inference_mode():
            layers = [
                (target, LoraLayer(target, columns, adapters, num_columns, self._pack))
                for target in self._targets
                if any(part.name in named for part in target.parts)
            ]
        return LoraStack(columns, num_columns, layers)

    def install(self, stack: LoraStack) -> None:
        """Replace the served adapters; call it between two batches."""
        for handle in self._handles:
            handle.remove()
        self._columns, self._num_columns = stack.columns, stack.num_columns
        self._handles = [self._hook(target, layer) for target, layer in stack.layers]

    def begin(self, rows: Iterable[tuple[int, int]]) -> None:
        """Set the rows of the next forward pass: (adapter, number of rows), in order."""
        counted = list(rows)
        self._mask_of_pass = None
        if all(number == NO_ADAPTER for number, _ in counted):
            self._mask = None
            return
        num_rows = sum(count for _, count in counted)
        mask = torch.zeros(num_rows, self._num_columns, dtype=torch.bool)
        first = 0
        for number, count in counted:
            if number != NO_ADAPTER:
                mask[first : first + count, self._columns[number]] = True
            first += count
        self._mask = send(mask, self._device)

    def narrow(self, rows: slice | torch.Tensor, *, is_decode: bool) -> None:
        """Restrict the pass to these rows, in this order."""
        if self._mask_of_pass is None:
            self._mask_of_pass = self._mask
        if self._mask_of_pass is not None:
            self._mask = self._mask_of_pass[rows]

    def widen(self) -> None:
        """Lift the restriction."""
        if self._mask_of_pass is not None:
            self._mask, self._mask_of_pass = self._mask_of_pass, None

    def _hook(self, target: LoraTarget, lora_layer: LoraLayer) -> RemovableHandle:
        def add(
            _: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor
        ) -> torch.Tensor | None:
            return None if self._mask is None else lora_layer.add_to(out, args[0], self._mask)

        return target.linear.register_forward_hook(add)

    def _pack(self, weight: torch.Tensor) -> Linear:
        weight = weight.to(self._device, self._dtype)
        if self._is_packed:
            return self._linears.linear(weight, None)
        return lambda rows: nn.functional.linear(rows, weight)


def find_lora_targets(model: PreTrainedModel) -> list[LoraTarget]:
    """Find the linear layers of a model, plain, packed or merged; not those that see images."""
    targets: dict[int, LoraTarget] = {}
    served = set(map(id, language_modules(model)))
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        linear = module._merged.linear if isinstance(module, MergedLinearView) else module
        if id(module) not in served or linear is head or id(linear) in targets:
            continue
        if isinstance(linear, FastLinear):
            sizes = linear.parts if all(part for part, _ in linear.parts) else []
        elif type(linear) is nn.Linear and not getattr(linear, "is_absorbed", False):
            sizes = [(name, linear.out_features)]
        else:
            continue
        targets[id(linear)] = LoraTarget(linear, linear.in_features, _lay_out(sizes))
    return [target for target in targets.values() if target.parts]


def _lay_out(sizes: list[tuple[str, int]]) -> list[LoraSlice]:
    parts, start = [], 0
    for name, size in sizes:
        parts.append(LoraSlice(name, start, start + size))
        start += size
    return parts
