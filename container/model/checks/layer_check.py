"""Layer checks: runs decoder layers alone, on their inputs in the model's own forward pass.

    own pass        ids -> layer 0 -> layer 1 -> ...          inputs and outputs are recorded
    exact pass      the same inputs -> each layer in float32
    served pass     the same inputs -> each layer as served, a batch of prompts and decodes

Errors do not propagate from layer to layer, so a fault shows in its layer, and rounding stays as
small as in one layer. Of the layers of one variant (class, sizes, attention) the first, the middle
and the last are checked, and at most MAX_LAYERS in all, so the cost grows with the size of a layer,
not of the model.
"""

import contextlib
import math
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from container.model.checks.layer_accuracy import Rows, largest_error, nudged, worst_accuracy
from container.model.checks.layer_choice import (
    MAX_HELD,
    choose_layers,
    exact_bytes,
    group_layers,
    parent_of,
)
from container.model.checks.own_pass import OwnPass
from container.model.checks.routing import Routing
from container.model.checks.schedule import CheckPrompt, num_blocks, plan_schedule
from container.model.checks.skipping import LayerSkips, pass_on
from container.model.forward_batch import ForwardPlan
from container.model.reference_check import (
    EXACT_DTYPE,
    Accuracy,
    Convert,
    in_precision,
    replaced,
)

# The exact pass computes in float32 or more, so only a fault can cause a larger relative error of a
# row than this.
EXACT_TOLERANCE = 1e-4

# Further measurements of the own error of recurrent layers.
NUM_SAMPLES = 3


class ReferencePass:
    """Records the model's own pass on a prompt, and runs its layers on the recorded inputs."""

    def __init__(
        self,
        module: PreTrainedModel,
        prompt: CheckPrompt,
        layers: dict[str, Hashable],
        points: Iterable[str],
        *,
        num_at_once: int | None = None,
        limit_s: float = math.inf,
    ) -> None:
        """Run the model once, with a cache: `num_at_once` ids and the rest one by one; None: all.

        `layers` has the variant of each decoder layer, by name, in order. Outputs are recorded of
        the checked layers and of those `points` (names of modules) that are in them. After
        `limit_s` seconds the pass leaves out the other layers: see `skips`.
        """
        self.prompt = prompt
        self.dtype = next(module.parameters()).dtype
        self.checked = choose_layers(layers)
        self.layers = layers
        self._points = [
            name for name in (*self.checked, *points) if parent_of(name, self.checked) is not None
        ]
        self._prompt_len = num_at_once
        self._positions = torch.arange(len(prompt.ids))
        self._input_dtype = self.dtype
        try:
            self._run_own(module, limit_s)
        except Exception:  # a layer may need what another one leaves for it
            if not self.skips.names:
                raise
            self._run_own(module, math.inf)
        self.exact: Rows = {}
        self._samples: dict[str, list[torch.Tensor]] = defaultdict(list)

    def _run_own(self, module: PreTrainedModel, limit_s: float) -> None:
        self._inputs: dict[str, torch.Tensor] = {}
        self._returns_tensors = True
        self._routing = Routing(map(module.get_submodule, self.checked))
        self.skips = LayerSkips(self.layers, self.checked)
        own_pass = OwnPass(module, self.prompt, self._prompt_len)
        with (
            self.skips.choosing(module, limit_s),
            self._routing.recording(),
            self._recording(module) as outputs,
        ):
            deque(own_pass.run(), 0)
        self.logits = own_pass.logits
        self.cache: Any = own_pass.cache
        self.own: Rows = _concatenated(outputs)

    def compute_exact(self, module: PreTrainedModel) -> None:
        """Compute the checked layers in the exact format, with the model's own attention."""
        self.exact = self._run_exact(module)
        if self._prompt_len is not None and self.dtype.itemsize < 4:
            self._sample_errors(module)

    def _run_exact(self, module: PreTrainedModel) -> Rows:
        rows: Rows = {}
        for names in self.groups(module):
            with self.exactly(module, names):
                rows |= self._run_layers(module, names)
        return rows

    def _run_layers(self, module: PreTrainedModel, names: list[str]) -> Rows:
        with self.feeding(module, names) as outputs:
            for positions in OwnPass(module, self.prompt, self._prompt_len).run():
                self._positions = positions
        return _concatenated(outputs)

    def _sample_errors(self, module: PreTrainedModel) -> None:
        """Measure the own layers' errors again, on inputs that differ by one rounding.

        Few rounded numbers decide a whole row of a recurrent layer: a step size, a decay. Where
        their rounding happens to be small in one pass, that pass says little about the next one.
        """
        inputs, generator = self._inputs, torch.Generator().manual_seed(0)
        for _ in range(NUM_SAMPLES):
            self._inputs = {name: nudged(rows, generator) for name, rows in inputs.items()}
            own, exact = self._run_layers(module, self.checked), self._run_exact(module)
            for name, rows in exact.items():
                self._samples[name].append((own[name].to(rows.dtype) - rows).square())
        self._inputs = inputs

    @property
    def has_experts(self) -> bool:
        """Whether checked layers choose experts for each row."""
        return self._routing.has_experts

    def unchecked_layers(self) -> list[str]:
        """Return the layers of variants of which no layer is checked."""
        known = {self.layers[name] for name in self.checked}
        return [name for name, variant in self.layers.items() if variant not in known]

    def keep_first_layers(self) -> list[str]:
        """Check only the first layer of each variant from now on; return the layers left out."""
        first = {variant: name for name, variant in reversed(self.layers.items())}
        left_out = [name for name in self.checked if name not in first.values()]
        self.checked = [name for name in self.checked if name not in left_out]
        return left_out

    def groups(self, module: PreTrainedModel) -> list[list[str]]:
        """Return the checked layers in groups that run in the exact format together.

        If layers cannot be skipped, all are in one group.
        """
        sizes = {name: exact_bytes(module, [name], self.dtype) for name in self.checked}
        return group_layers(sizes) if self._returns_tensors else [list(self.checked)]

    @contextlib.contextmanager
    def exactly(
        self, module: PreTrainedModel, names: list[str], convert: Convert | None = None
    ) -> Iterator[None]:
        """Run these layers in the exact format in this context, with converted weights."""
        layers = [module.get_submodule(name) for name in names]
        holds = len(names) == 1 or exact_bytes(module, names, self.dtype) <= MAX_HELD
        self._input_dtype = EXACT_DTYPE[self.dtype]
        try:
            with in_precision(module, self._input_dtype, convert, layers, keeps=holds):
                yield
        finally:
            self._input_dtype = self.dtype

    def run(
        self,
        module: PreTrainedModel,
        run_plan: Callable[[ForwardPlan], object],
        block_size: int,
        names: Iterable[str] | None = None,
    ) -> Rows:
        """Run the schedule with the layers' recorded inputs; return the outputs row by row.

        Only the layers in `names` run, by default the checked ones. `Rows` also has "positions".
        """
        positions: list[int] = []
        real_rows: list[int] = []
        scratch_slot = num_blocks(self.prompt.ids, block_size) * block_size
        with self.feeding(module, names) as outputs:
            for plan, indexes, _ in plan_schedule(self.prompt, block_size):
                self._positions = torch.tensor(indexes)
                run_plan(plan)
                first = len(positions)
                real_rows += [
                    first + i for i, slot in enumerate(plan.slot_mapping) if slot < scratch_slot
                ]
                positions += indexes
        keep = torch.tensor(real_rows)
        rows = {name: out[keep.to(out.device)] for name, out in _concatenated(outputs).items()}
        return rows | {"positions": torch.tensor(positions)[keep]}

    @contextlib.contextmanager
    def feeding(
        self, module: PreTrainedModel, names: Iterable[str] | None = None
    ) -> Iterator[dict[str, list[torch.Tensor]]]:
        """Replace layers' inputs by the recorded rows at `_positions`; record their outputs.

        Layers that are not in `names` return their input, if the model's layers return a tensor.
        """
        fed = set(self.checked if names is None else names)
        outputs: dict[str, list[torch.Tensor]] = defaultdict(list)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._routing.replacing(lambda: self._positions))
            head = module.get_output_embeddings()
            if head is not None:  # the logits are not used
                stack.enter_context(replaced(head, "forward", pass_on))
            for name in self.layers:
                layer = _submodule(module, name)
                if layer is None:  # it is in a stack of layers
                    continue
                if name in fed:
                    feed = partial(self._feed, name)
                    hook = layer.register_forward_pre_hook(feed, with_kwargs=True)
                    stack.callback(hook.remove)
                elif self._returns_tensors:
                    stack.enter_context(replaced(layer, "forward", pass_on))
            for name in self._points:
                point = _submodule(module, name)
                if point is not None and parent_of(name, fed) is not None:
                    hook = point.register_forward_hook(_record(outputs[name]))
                    stack.callback(hook.remove)
            for name in fed:
                hook = module.get_submodule(name).register_forward_hook(self._leave_exact)
                stack.callback(hook.remove)
            yield outputs

    def accuracy(self, served: Rows, ideal: Rows | None = None) -> Accuracy:
        """Return the worst accuracy of the checked modules. Raises Mismatch if there are none."""
        return worst_accuracy(self.exact, self.own, served, self.dtype, ideal, self._samples)

    def exact_error(self, served: Rows) -> float:
        """Return the largest relative error of a row that was computed in the exact format."""
        return largest_error(self.exact, served)

    @contextlib.contextmanager
    def _recording(self, module: nn.Module) -> Iterator[dict[str, list[torch.Tensor]]]:
        outputs: dict[str, list[torch.Tensor]] = defaultdict(list)
        hooks = []
        for name in self.layers:

            def record_inputs(layer, args, kwargs, output, name=name):  # type: ignore[no-untyped-def]
                rows = (args[0] if args else kwargs["hidden_states"]).clone()
                before = self._inputs.get(name)
                self._inputs[name] = rows if before is None else torch.cat([before, rows], -2)
                self._returns_tensors &= isinstance(output, torch.Tensor)

            layer = module.get_submodule(name)
            hooks.append(layer.register_forward_hook(record_inputs, with_kwargs=True))
        for name in self._points:
            point = module.get_submodule(name)
            hooks.append(point.register_forward_hook(_record(outputs[name])))
        try:
            yield outputs
        finally:
            for hook in hooks:
                hook.remove()

    def _feed(
        self, name: str, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rows = self._inputs[name]
        rows = rows.index_select(-2, self._positions.to(rows.device)).to(self._input_dtype)
        if self._input_dtype != self.dtype:  # biases too; parameters are converted elsewhere
            kwargs = {key: self._exact(value) for key, value in kwargs.items()}
        if args:
            return (rows, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": rows}

    def _exact(self, argument: Any) -> Any:
        is_number = isinstance(argument, torch.Tensor) and argument.is_floating_point()
        return argument.to(self._input_dtype) if is_number else argument

    def _leave_exact(self, _layer: nn.Module, _args: object, output: Any) -> Any:
        """Cast a layer's output back to the model's dtype, for the modules after it."""
        if isinstance(output, torch.Tensor):
            return output.to(self.dtype)
        return (output[0].to(self.dtype), *output[1:])


def _record(outputs: list[torch.Tensor]) -> Callable[..., None]:
    def record(_module: nn.Module, _args: object, output: Any) -> None:
        rows = output if isinstance(output, torch.Tensor) else output[0]
        outputs.append(rows.movedim(-2, 0).flatten(1).clone())

    return record


def _concatenated(outputs: dict[str, list[torch.Tensor]]) -> Rows:
    return {name: torch.cat(parts) for name, parts in outputs.items() if parts}


def _submodule(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None
