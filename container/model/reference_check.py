"""Reference checks: a model as served must be as accurate as its own forward pass.

In 16 bits no result is exact: two correct ways to compute a layer differ by rounding, and with
trained weights, whose outliers are hundreds of times larger than the rest, by more than a fixed
fraction of the largest number. So both are compared with the exact result, which is the same
computation in float32 (in float64 for a float32 model):

    |served - exact|  <=  factor * |own - exact|        per row, each channel in its own scale

The exact result needs no second copy of the model: `in_precision` converts the weights of one
module at a time, while it runs.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeGuard, cast

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from container.errors import one_line
from container.model.fallbacks import Fallbacks
from container.model.hf_config import text_config

log = logging.getLogger(__name__)

# Tokens of the prompt of a check.
NUM_IDS = 36

# The accepted error, in multiples of the model's own error: of the median row, and of the worst
# row. In float32 the order of a sum decides how much of the error adds up, and GEMM kernels differ
# in it; in 16 bits rounding the result hides that. Measured in docs/LOG.md.
FACTORS = {torch.float32: (4.0, 12.0), torch.bfloat16: (1.5, 5.0), torch.float16: (1.5, 5.0)}
# Rows of fewer channels are compared as a whole.
MIN_CHANNELS = 16
# The format of the exact computation, by the model's.
EXACT_DTYPE = {
    torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float64,
}  # fmt: skip


# The largest accepted distance of a whole model's logits from its own forward pass's, relative to
# the row's norm; the second with eight bits for weights or cache, the third with four for weights.
# Unrelated logits of one norm are 1.4 apart.
WHOLE_TOLERANCE, REDUCED_TOLERANCE, FOUR_BITS_TOLERANCE = 0.3, 0.7, 1.2

# Maps a module, a weight's name and the weight in a wider format to the weight to compute with.
Convert = Callable[[nn.Module, str, torch.Tensor], torch.Tensor]


class Mismatch(Exception):
    """The model as served is less accurate than its own forward pass, or differs from it."""


def default_ids(config: PretrainedConfig) -> list[int]:
    """Create check ids for a model without a usable tokenizer: the BOS token and numbers."""
    text = text_config(config)
    first = getattr(text, "bos_token_id", None)
    ids = [first] if isinstance(first, int) else []
    ids += [5 + 7 * index for index in range(NUM_IDS - len(ids))]
    return [token_id % text.vocab_size for token_id in ids]


def usable_ids(ids: list[int] | None, config: PretrainedConfig) -> list[int]:
    """Return these ids if the model's vocabulary has them, else `default_ids`."""
    if ids and max(ids) < text_config(config).vocab_size:
        return ids
    return default_ids(config)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Errors as served, in multiples of the model's own: of the median row and the worst row."""

    median: float
    worst: float
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.median:.2g} times the model's own rounding error, {self.worst:.2g} at worst"

    @property
    def is_accepted(self) -> bool:
        """Whether both are within their factors; NaN never is."""
        return self.is_within(1.0)

    def is_within(self, allowance: float) -> bool:
        """Whether both are within `allowance` times their factors; NaN never is."""
        median, worst = (allowance * factor for factor in FACTORS[self.dtype])
        return self.median <= median and self.worst <= worst


def largest(numbers: Iterable[float]) -> float:
    """Return the largest number, NaN if any is: unlike max(), which may skip NaN."""
    return torch.tensor(list(numbers), dtype=torch.float64).max().item()


def measure(
    exact: torch.Tensor,
    own: torch.Tensor,
    served: torch.Tensor,
    dtype: torch.dtype,
    ideal: torch.Tensor | None = None,
    samples: Sequence[torch.Tensor] = (),
) -> Accuracy:
    """Compare errors of results, all [rows, channels]; `dtype` is that of `own` and `served`.

    Each channel is scaled by its own error, so that an outlier channel hides no other. The error
    allowed in a row is the row's own error, and at least the median row's. `ideal` is the exact
    result with weights or cache in fewer bits: the error of these is allowed as well. `samples` are
    squares of further errors of the model's own, on inputs that differ by rounding.
    """
    compute_dtype = torch.promote_types(exact.dtype, torch.float32)
    exact, own, served = (rows.to(compute_dtype) for rows in (exact, own, served))
    noise = (own - exact).square()
    if samples:
        noise = (noise + sum(samples)) / (1 + len(samples))
    if ideal is not None:
        noise += (ideal.to(compute_dtype) - exact).square()
    # Results are rounded once more when they are stored.
    noise += exact.square().mean(0) * (torch.finfo(dtype).eps / 4) ** 2
    if noise.shape[1] < MIN_CHANNELS:
        ratio = ((served - exact).square().sum() / noise.sum()).sqrt()
        return Accuracy(ratio.item(), ratio.item(), dtype)
    scale = noise.mean(0).clamp_(min=torch.finfo(compute_dtype).tiny)
    allowed = (noise / scale).mean(1)
    allowed = allowed.maximum(allowed.median())
    ratio = (((served - exact).square() / scale).mean(1) / allowed).sqrt()
    return Accuracy(ratio.median().item(), ratio.max().item(), dtype)


def row_error(served: torch.Tensor, own: torch.Tensor) -> float:
    """Return the largest distance of two rows, [rows, channels], relative to the row's norm."""
    off = (served - own).float().norm(dim=-1) / own.float().norm(dim=-1).clamp_(min=1e-6)
    return off.max().item()


def logits_error(served: torch.Tensor, own: torch.Tensor) -> float:
    """Return `row_error` of logits with each row's mean removed, which carries no information."""
    return row_error(*(rows - rows.mean(-1, keepdim=True) for rows in (served, own)))


class Reference:
    """The result of a model's own pass, [rows, channels], and the exact result of that pass."""

    def __init__(
        self,
        module: nn.Module,
        run: Callable[[], torch.Tensor],
        dtype: torch.dtype,
        fallbacks: Fallbacks,
    ) -> None:
        """Run the pass twice, in the model's format and in the exact one.

        Where the exact pass fails, the checks are coarse; `fallbacks` has it as not proved.
        """
        self.own = run()
        self._dtype = dtype
        self._exact: torch.Tensor | None = None
        try:
            with in_precision(module, EXACT_DTYPE[dtype]):
                self._exact = run()
        except Exception as error:  # model code that converts dtypes itself, or packed weights
            fallbacks.leave_out(
                f"outputs to less than {WHOLE_TOLERANCE} of a row, since the model's pass in "
                f"{EXACT_DTYPE[dtype]} failed ({one_line(error)}); a checkpoint whose weights are "
                "not packed may pass, else compare some answers yourself"
            )

    def check(self, served: torch.Tensor, label: str) -> None:
        """Compare the same rows as served. Raises Mismatch."""
        if self._exact is None:
            off = row_error(served, self.own)
            log.info("%s checked against the model's own pass: off by %.2g", label, off)
            if not off <= WHOLE_TOLERANCE:
                raise Mismatch(f"{label} is off by {off:.2g} (limit {WHOLE_TOLERANCE})")
            return
        accuracy = measure(self._exact, self.own, served, self._dtype)
        log.info("%s checked against the model's own pass: off by %s", label, accuracy)
        if not accuracy.is_accepted:
            raise Mismatch(f"{label} is off by {accuracy}")


@contextlib.contextmanager
def in_precision(
    model: nn.Module,
    dtype: torch.dtype,
    convert: Convert | None = None,
    parts: Iterable[nn.Module] | None = None,
    *,
    keeps: bool = False,
) -> Iterator[None]:
    """Compute in a wider format: each module's weights are converted only while it runs.

    `convert` may change them further. With `parts`, only these parts of the model are converted.
    `keeps` keeps converted weights until the end of the context, for parts that run many times.
    Weights offloaded to another device or to disk (accelerate) are loaded before, and not kept.
    """
    experts = _set_experts(model, "eager" if dtype == torch.float64 else None)
    with contextlib.ExitStack() as stack:
        stack.callback(_set_experts, model, experts)
        kept = stack if keeps else None
        roots = [model] if parts is None else parts
        for module in {id(inner): inner for root in roots for inner in root.modules()}.values():
            name = "_old_forward" if hasattr(module, "_old_forward") else "forward"
            forward = partial(_run_converted, module, getattr(module, name), dtype, convert, kept)
            stack.enter_context(replaced(module, name, forward))
        yield


@contextlib.contextmanager
def replaced(module: nn.Module, name: str, value: object) -> Iterator[None]:
    """Override an attribute of a module within the context."""
    before = vars(module).get(name)
    setattr(module, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(module, name)
        else:
            setattr(module, name, before)


def _set_experts(model: nn.Module, implementation: str | None) -> str | None:
    """Set a mixture of experts' implementation, if the model allows it; return the previous."""
    if not isinstance(model, PreTrainedModel):
        return None
    before: str | None = getattr(model.config, "_experts_implementation", None)
    if (
        implementation is not None
        and before is not None
        and model._can_set_experts_implementation()
    ):
        model.set_experts_implementation(implementation)
    return before


def _run_converted(
    module: nn.Module,
    forward: Callable[..., Any],
    dtype: torch.dtype,
    convert: Convert | None,
    kept: contextlib.ExitStack | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    with contextlib.ExitStack() as stack:
        for part in (module, *_looked_into(module)):
            owner = stack if kept is None or hasattr(part, "_old_forward") else kept
            if any(_is_convertible(tensor, dtype) for tensor in _own_tensors(part)):
                owner.enter_context(_converted(part, dtype, convert))
        return forward(*args, **kwargs)


def _own_tensors(module: nn.Module) -> list[torch.Tensor | None]:
    return [*module._parameters.values(), *module._buffers.values()]


def _looked_into(module: nn.Module) -> list[nn.Module]:
    """Return parts whose weights a module may read: its children, unless it has a layer list."""
    is_large = any(isinstance(part, nn.ModuleList) for part in module.modules())
    return [] if is_large else list(module.children())


@contextlib.contextmanager
def _converted(module: nn.Module, dtype: torch.dtype, convert: Convert | None) -> Iterator[None]:
    parameters, buffers = dict(module._parameters), dict(module._buffers)
    try:
        for name, parameter in parameters.items():
            if _is_convertible(parameter, dtype):
                # Not an nn.Parameter: a DTensor cannot become one in inference mode.
                converted = parameter.to(dtype)
                converted = converted if convert is None else convert(module, name, converted)
                module._parameters[name] = cast(nn.Parameter, converted)
        for name, buffer in buffers.items():
            if _is_convertible(buffer, dtype):
                module._buffers[name] = buffer.to(dtype)
        yield
    finally:
        module._parameters.update(parameters)
        module._buffers.update(buffers)


def _is_convertible(tensor: torch.Tensor | None, dtype: torch.dtype) -> TypeGuard[torch.Tensor]:
    if tensor is None or tensor.is_meta:
        return False
    return tensor.is_floating_point() and tensor.dtype != dtype
