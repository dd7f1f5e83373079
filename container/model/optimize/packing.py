"""Replaces linear layers and norms by packed, merged and fused ones."""

import logging
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import nn
from transformers import PreTrainedModel

from container.model.attention.cross import reads_encoder
from container.model.kernels.cpu import Kernels
from container.model.layers.linear import (
    MakeLinear,
    MergedLinear,
    MergedLinearView,
    merged_linear,
)
from container.model.layers.rms_norm import FusedRMSNorm, is_plain_rms_norm, norm_eps
from container.model.vision.language_model import language_modules

log = logging.getLogger(__name__)

MERGED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))


def name_linears(model: nn.Module) -> None:
    """Set each linear layer's name on it, since packed layers no longer have one."""
    for name, module in model.named_modules():
        if type(module) is nn.Linear:
            module.qualified_name = name


class _WatchedLinear(nn.Linear):
    """A linear layer that notes whether anyone but itself reads its weight."""

    is_running = False
    is_read = False

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and not self.is_running:
            self.__dict__["is_read"] = True
        return super().__getattr__(name)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.__dict__["is_running"] = True
        try:
            return super().forward(rows)
        finally:
            self.__dict__["is_running"] = False


@torch.inference_mode()
def keep_read_weights(model: PreTrainedModel, run: Callable[[], object]) -> None:
    """Mark the linear layers whose weights the model's code reads itself: they stay as they are.

    `run` calls the model. Of its head's weight, models read no more than the dtype.
    """
    head = model.get_output_embeddings()
    linears = [
        module for module in model.modules() if type(module) is nn.Linear and module is not head
    ]
    try:
        for linear in linears:
            linear.__class__ = _WatchedLinear
        run()
    finally:
        for linear in linears:
            linear.__class__ = nn.Linear
            vars(linear).pop("is_running", None)
            if vars(linear).pop("is_read", False):
                vars(linear)["keeps_weight"] = True


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
    """Replace linear layers and norms by faster forms, in place; `make_head` makes the output's.

    Not those of encoders, which other threads run at the same time.
    """
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    merged = norms = linears = 0
    modules = _served_modules(model)
    for module in modules:
        for names in MERGED if not reads_encoder(module) else ():
            merged += _merge(module, names, make)
    for module in modules:
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


def _served_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules that the engine's thread alone runs."""
    if not isinstance(model, PreTrainedModel) or not model.config.is_encoder_decoder:
        return language_modules(model)
    encoder = set(map(id, model.get_encoder().modules()))
    return [module for module in model.modules() if id(module) not in encoder]


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
