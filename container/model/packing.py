"""Faster forms of a model's layers on a CPU, each checked against the original before it serves.

* Linear layers keep their weights in oneDNN's own blocked format (1.3 to 2.5 times as fast as
  `F.linear` for few rows), and give the same bits for a row whatever the other rows are.
* Projections of the same input (q, k, v; gate, up) become one product.
* Root-mean-square norms run as one kernel.

Only layers that are exactly `nn.Linear`, or that compute what `F.rms_norm` computes, are replaced.
"""

import logging
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from container.model.kernels import can_norm, find_kernels

log = logging.getLogger(__name__)

# oneDNN chooses its blocking for this many rows; measured best or equal from 1 to 512.
PACK_ROWS = 32
JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))


class FastLinear(nn.Module):
    """What stands for one linear layer of the model, or for several with the same input.

    `parts` has names and output sizes of these layers, for adapters.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.in_features = weight.shape[1]
        self.bias = bias.detach() if bias is not None else None
        self.parts: list[tuple[str, int]] = []


# From a weight, [out, in], and a bias to what multiplies with them.
MakeLinear = Callable[[torch.Tensor, torch.Tensor | None], FastLinear]


class PackedLinear(FastLinear):
    """Keeps the weight in oneDNN's blocked format."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight, bias)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), PACK_ROWS)
        self._multiply = torch.ops.mkldnn._linear_pointwise

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply [..., in_features] to [..., out_features]."""
        out: torch.Tensor = self._multiply(rows, self.packed, self.bias, "none", [], "")
        return out


class PlainLinear(FastLinear):
    """Multiplies as torch does, on any device."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight, bias)
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply [..., in_features] to [..., out_features]."""
        return nn.functional.linear(rows, self.weight, self.bias)


class JoinedLinear:
    """Several projections of one input as one product; each part asks for its share.

    The product is made when a part is called with an input other than the last one.
    """

    def __init__(self, linears: list[nn.Linear], make: MakeLinear) -> None:
        self.sizes = [linear.out_features for linear in linears]
        self.linear = joined_linear(linears, make)
        self._input: torch.Tensor | None = None
        self._shares: tuple[torch.Tensor, ...] = ()

    def share(self, index: int, rows: torch.Tensor) -> torch.Tensor:
        """Return one projection of `rows`."""
        if rows is not self._input:
            self._shares = self.linear(rows).split(self.sizes, -1)
            self._input = rows
        share = self._shares[index]
        if index == len(self.sizes) - 1:
            self._input, self._shares = None, ()
        return share


def joined_linear(linears: list[nn.Linear], make: MakeLinear) -> FastLinear:
    """One product for layers with the same input, all with a bias or all without."""
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    if biases and len(biases) < len(linears):
        raise ValueError("some of the layers have a bias and some have none")
    weights = [linear.weight.detach() for linear in linears]
    weight = torch.cat(weights) if len(weights) > 1 else weights[0]
    made = make(weight, torch.cat(biases) if biases else None)
    made.parts = [(str(getattr(one, "qualified_name", "")), one.out_features) for one in linears]
    return made


def name_linears(model: nn.Module) -> None:
    """Let each linear layer know its name, which it loses when it is packed."""
    for name, module in model.named_modules():
        if type(module) is nn.Linear:
            module.qualified_name = name


class LinearShare(nn.Module):
    """Stands where one of the joined projections stood."""

    def __init__(self, joined: JoinedLinear, index: int) -> None:
        super().__init__()
        self._joined = joined
        self._index = index

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply [..., in_features] to this projection's [..., out_features]."""
        return self._joined.share(self._index, rows)


class FusedRMSNorm(nn.Module):
    """Root-mean-square norm in one kernel (Zhang and Sennrich, 2019)."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension."""
        weight = self.weight
        if can_norm(weight) and rows.dtype == weight.dtype and rows.is_contiguous():
            kernels = find_kernels()
            if kernels is not None:
                return kernels.norm(rows, weight, self.eps)
        return nn.functional.rms_norm(rows, weight.shape, weight, self.eps)


@torch.inference_mode()
def pack(model: nn.Module, make: MakeLinear, make_head: MakeLinear | None = None) -> None:
    """Replace what is faster in another form, in place; `make_head` is for the output layer."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    joined = norms = linears = 0
    for module in list(model.modules()):
        for names in JOINED:
            joined += _join(module, names, make)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                chosen = make_head if make_head is not None and child is head else make
                setattr(module, name, joined_linear([child], chosen))
                linears += 1
            elif is_plain_rms_norm(child):
                setattr(module, name, FusedRMSNorm(child.get_parameter("weight"), norm_eps(child)))
                norms += 1
    log.debug("packed %d linear layers, joined %d, fused %d norms", linears, joined, norms)


def _join(module: nn.Module, names: tuple[str, ...], make: MakeLinear) -> int:
    linears = [getattr(module, name, None) for name in names]
    if not all(type(linear) is nn.Linear for linear in linears):
        return 0
    known: list[nn.Linear] = [linear for linear in linears if isinstance(linear, nn.Linear)]
    first = known[0]
    if any(
        linear.in_features != first.in_features or (linear.bias is None) != (first.bias is None)
        for linear in known
    ):
        return 0
    joined = JoinedLinear(known, make)
    for index, name in enumerate(names):
        setattr(module, name, LinearShare(joined, index))
    return 1


def norm_eps(module: nn.Module) -> float:
    """What a norm adds to the mean square."""
    for name in ("variance_epsilon", "eps"):
        if isinstance(value := getattr(module, name, None), float):
            return value
    return 1e-6


def is_plain_rms_norm(module: nn.Module) -> bool:
    """Try it: some norms of that name add one to the weight or subtract the mean."""
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(weight, torch.Tensor):
        return False
    if [name for name, _ in module.named_parameters()] != ["weight"] or weight.dim() != 1:
        return False
    rows = torch.randn(3, weight.shape[0], generator=torch.Generator().manual_seed(0)) * 3
    rows = rows.to(weight.device, weight.dtype)
    return torch.allclose(
        module(rows).float(),
        FusedRMSNorm(weight, norm_eps(module))(rows).float(),
        atol=1e-5 if weight.dtype == torch.float32 else 0.05,
        rtol=1e-5 if weight.dtype == torch.float32 else 0.02,
    )
