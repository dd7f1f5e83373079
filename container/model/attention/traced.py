"""Paged attention for models that compute their attention themselves.

Such a model (BLOOM, MPT, Falcon, GPT-J ...) stores keys and values in a cache and then multiplies:

    keys, values = cache.update(keys, values, layer)
    softmax(queries @ keys * scale + bias) @ values

Its cache here returns stand-ins for keys and values, which note what is done with them, by torch's
`__torch_function__`; with the last product the paged cache is attended to. The bias may depend on a
key's position alone, as that of ALiBi does. Other operations raise NotTraceable.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from container.model.attention.metadata import AttentionMetadata, AttentionParams
from container.model.attention.paged import attend

# The attention implementation in the model's configuration, which only its masks read.
NAME = "paged_traced"
# Gets a layer, its queries, keys and values, [tokens, heads, dim], and its parameters.
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, AttentionParams], torch.Tensor]

PRODUCTS = {"matmul", "bmm", "__matmul__", "__rmatmul__"}
SUMS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
RATIOS = {"div", "div_", "true_divide", "__truediv__", "__itruediv__"}
MULTIPLES = {"mul", "mul_", "__mul__", "__rmul__", "__imul__"}
# They change the layout or the dtype, neither of which matters here.
SAME = {
    "view", "reshape", "transpose", "permute", "contiguous", "to", "float", "type", "flatten",
    "unsqueeze", "squeeze", "expand", "dropout", "softmax", "__getitem__", "unflatten",
}  # fmt: skip


class NotTraceable(Exception):
    """A model's attention does more than is known here; the message says what."""


class TracedCache:
    """Stands in for a model's cache in one step.

    `num_positions` is the largest context length of the step's sequences or more, for which the
    model then creates its bias; `num_rows` is the number of the step's tokens.
    """

    is_compileable = False
    is_sliding = (False,)

    def __init__(self, attend_layer: Attend, num_rows: int, num_positions: int) -> None:
        self.attend = attend_layer
        self.num_positions = max(num_positions, num_rows)
        self._num_rows = num_rows

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many tokens come before the rows."""
        return self.num_positions - self._num_rows

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Return the length of the context, and its first position."""
        return self.num_positions, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Return the position of the first row."""
        return self.get_seq_length()

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple["_Traced", "_Traced"]:
        """Return stand-ins for all keys and values. The rows' are [1, heads, tokens, dim]."""
        layer = _Layer(self, layer_idx, keys, values)
        return _Traced(layer, "keys"), _Traced(layer, "values")


@dataclass(frozen=True)
class _Layer:
    cache: TracedCache
    index: int
    keys: torch.Tensor
    values: torch.Tensor

    def attend(self, query: torch.Tensor, scale: float, bias: torch.Tensor | None) -> torch.Tensor:
        """Attend with queries of any layout that ends with [tokens, dim]."""
        rows, dim = query.shape[-2:]
        heads = query.reshape(-1, rows, dim).to(self.keys.dtype)  # some multiply in float32
        if bias is not None:
            if bias.shape[-2] != 1:
                raise NotTraceable("its scores get a bias that differs between queries")
            bias = bias.reshape(-1, bias.shape[-1]).expand(len(heads), -1)
        params = AttentionParams(scale, heads=len(heads), key_bias=bias)
        states = (heads, self.keys.flatten(0, -3), self.values.flatten(0, -3))
        q, k, v = (part.transpose(0, 1) for part in states)
        out = self.cache.attend(self.index, q, k, v, params)
        return out.transpose(0, 1).reshape(*query.shape[:-1], out.shape[-1])


@dataclass(frozen=True)
class _Traced:
    """Stands in for the keys, the values or the scores of a layer."""

    layer: _Layer
    kind: str
    query: torch.Tensor | None = None
    scale: float = 1.0
    bias: torch.Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        states = self.layer.values if self.kind == "values" else self.layer.keys
        return torch.Size((*states.shape[:-2], self.layer.cache.num_positions, states.shape[-1]))

    @property
    def dtype(self) -> torch.dtype:
        return self.layer.keys.dtype

    @property
    def device(self) -> torch.device:
        return self.layer.keys.device

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    @classmethod
    def __torch_function__(
        cls, function: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(function.__name__, *args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: _run(name, self, *args, **kwargs)


def _operator(name: str) -> Callable[..., Any]:
    return lambda self, *args: _run(name, self, *args)


# Python finds operators in a class only.
for _name in PRODUCTS | SUMS | RATIOS | MULTIPLES | {"__getitem__"}:
    if _name.startswith("__"):
        setattr(_Traced, _name, _operator(_name))


def _run(name: str, *args: Any, **kwargs: Any) -> Any:
    """Note an operation of torch, whose name this is; the last one gives the attention's output."""
    first = args[0]
    if name in SAME and isinstance(first, _Traced):
        return first
    if name in PRODUCTS:
        return _multiply(*(args if name != "__rmatmul__" else args[::-1]), **kwargs)
    if name == "baddbmm":
        return _bias_and_multiply(*args, **kwargs)
    if name == "scaled_dot_product_attention":
        return _attend_fused(*args, **kwargs)
    if name == "masked_fill" and args[1].numel() == 1:  # see _create_no_mask
        return first
    if isinstance(first, _Traced) and first.kind == "scores" and len(args) == 2 and not kwargs:
        if name in MULTIPLES:
            return _scaled(first, float(args[1]))
        if name in RATIOS:
            return _scaled(first, 1 / float(args[1]))
        if name in SUMS:
            return _biased(first, args[1])
    raise NotTraceable(f"its attention uses {name}")


def _multiply(left: Any, right: Any) -> Any:
    if isinstance(left, torch.Tensor) and isinstance(right, _Traced) and right.kind == "keys":
        return _Traced(right.layer, "scores", left)
    both = isinstance(left, _Traced) and isinstance(right, _Traced)
    if both and (left.kind, right.kind) == ("scores", "values"):
        return left.layer.attend(left.query, left.scale, left.bias)
    raise NotTraceable("its attention multiplies other tensors")


def _bias_and_multiply(
    bias: Any, batch1: Any, batch2: Any, *, beta: float = 1.0, alpha: float = 1.0
) -> Any:
    return _biased(_scaled(_multiply(batch1, batch2), alpha), bias * beta)


def _attend_fused(
    query: Any, key: Any, value: Any, attn_mask: Any = None, *_: object,
    scale: float | None = None, **__: object,
) -> Any:  # fmt: skip
    scores = _scaled(_multiply(query, key), query.shape[-1] ** -0.5 if scale is None else scale)
    return _multiply(_biased(scores, attn_mask), value)


def _scaled(scores: _Traced, factor: float) -> _Traced:
    bias = None if scores.bias is None else scores.bias * factor
    return replace(scores, scale=scores.scale * factor, bias=bias)


def _biased(scores: _Traced, bias: torch.Tensor | None) -> _Traced:
    if bias is None or bias.shape[-1] == 1:  # the softmax does not depend on it
        return scores
    return replace(scores, bias=bias if scores.bias is None else scores.bias + bias)


def _create_no_mask(*, dtype: torch.dtype, device: torch.device, **_: object) -> torch.Tensor:
    """Implement transformers' mask interface: hide nothing, whether it is added or fills."""
    return torch.zeros(1, 1, 1, 1, dtype=dtype, device=device)


ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _create_no_mask)


def attach(module: nn.Module) -> Callable[[], None]:
    """Give a model a TracedCache in each call that has a `step`, instead of the step.

    Returns a function that undoes it.
    """
    return module.register_forward_pre_hook(_replace_step, with_kwargs=True).remove


def _replace_step(
    _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if "step" not in kwargs:
        return None
    step: AttentionMetadata = kwargs.pop("step")

    widths = [group.block_table.shape[1] for group in step.groups]
    widths += [chunk.block_table.shape[1] for chunk in step.chunks]
    if step.decodes is not None:
        widths.append(step.decodes.block_table.shape[1])
    num_positions = max(widths, default=1) * step.cache.block_size
    kwargs["past_key_values"] = TracedCache(
        partial(attend, step), len(step.slot_mapping), num_positions
    )
    return args, kwargs
