"""Replaces linear layers and norms by packed, merged and fused ones."""

import logging
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import nn
from transformers import PreTrainedModel

from container.model.kernels.cpu import Kernels
from container.model.layers.linear import (
    MakeLinear,
    MergedLinear,
    MergedLinearView,
    merged_linear,
)
from container.model.layers.rms_norm import FusedRMSNorm, is_plain_rms_norm, norm_eps

log = logging.getLogger(__name__)

MERGED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))


def name_linears(model: nn.Module) -> None:
    """Set each linear layer's name on it, since packed layers no longer have one."""
    for name, module in model.named_modules():
        if type(module) is nn.Linear:
            module.qualified_name = name


class _WatchedLinear(nn.Linear):
    """A linear layer that notes who reads its weight, other than itself.

    With `shows_meta` others get a tensor without numbers, which has a dtype and a shape.
    """

    is_running = False
    is_read = False
    shows_meta = False

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        if name != "weight" or self.is_running:
            return value
        self.__dict__["is_read"] = True
        return value.to("meta") if self.shows_meta else value

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.__dict__["is_running"] = True
        try:
            return super().forward(rows)
        finally:
            self.__dict__["is_running"] = False


@torch.inference_mode()
def keep_read_weights(model: nn.Module, run: Callable[[], object]) -> None:
    """Mark the linear layers whose numbers the model's code reads itself: they stay as they are.

    `run` calls the model. Code that only asks for a weight's dtype or shape gets them from the
    packed form as well.
    """
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    try:
        for linear in linears:
            linear.__class__ = _WatchedLinear
        run()
        read = [linear for linear in linears if vars(linear).get("is_read")]
        for linear in read:
            linear.__dict__["shows_meta"] = True
        keeps = bool(read) and not _runs(run)
    finally:
        for linear in linears:
            linear.__class__ = nn.Linear
            for name in ("is_running", "is_read", "shows_meta"):
                vars(linear).pop(name, None)
    for linear in read if keeps else ():
        vars(linear)["keeps_weight"] = True


def _runs(run: Callable[[], object]) -> bool:
    try:
        run()
    except Exception as error:  # a tensor without numbers can fail anywhere
        log.debug("linear layers whose weights the model reads stay unpacked: %s", error)
        return False
    return True


def is_packable(module: object) -> TypeGuard[nn.Linear]:
    """Whether a module is a linear layer that may be replaced; see `keep_read_weights`."""
    return type(module) is nn.Linear and not getattr(module, "keeps_weight", False)


@torch.inference_mode()
def pack(
    model: nn.Module,
    make: MakeLinear,
    make_head: MakeLinear | None = None,
    *,
    kernels: Kernels | None = None,
) -> None:
    """Replace linear layers and norms by faster forms, in place; `make_head` makes the output's."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    merged = norms = linears = 0
    for module in list(model.modules()):
        for names in MERGED:
            merged += _merge(module, names, make)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if is_packable(child):
                chosen = make_head if make_head is not None and child is head else make
                setattr(module, name, merged_linear([child], chosen))
                linears += 1
            elif is_plain_rms_norm(child):
                weight = child.get_parameter("weight")
                setattr(module, name, FusedRMSNorm(weight, norm_eps(child), kernels))
                norms += 1
    log.debug("packed %d linear layers, joined %d, fused %d norms", linears, merged, norms)


def _merge(module: nn.Module, names: tuple[str, ...], make: MakeLinear) -> int:
    linears = [getattr(module, name, None) for name in names]
    known = [linear for linear in linears if is_packable(linear)]
    if len(known) < len(names):
        return 0
    first = known[0]
    if any(
        linear.in_features != first.in_features or (linear.bias is None) != (first.bias is None)
        for linear in known
    ):
        return 0
    merged = MergedLinear(known, make)
    for index, name in enumerate(names):
        setattr(module, name, MergedLinearView(merged, index))
    return 1
