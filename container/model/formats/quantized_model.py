"""Creates a model without weights, and sets weights of any form: no float copy of the model."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from container.errors import ModelLoadError
from container.model.layers.quantized_weight import QuantizedWeight

log = logging.getLogger(__name__)

# The modules that compute with a `QuantizedWeight`, or are replaced by ones that do.
QUANTIZABLE = (nn.Linear, nn.Embedding)


def empty_model(
    auto_class: Any, config: PretrainedConfig, dtype: torch.dtype, *, trust_remote_code: bool
) -> PreTrainedModel:
    """Create a model whose weights are uninitialized memory."""
    with no_init_weights():
        model: PreTrainedModel = auto_class.from_config(
            config, dtype=dtype, attn_implementation="eager", trust_remote_code=trust_remote_code
        )
    return model


def set_weights(
    model: PreTrainedModel,
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    dequantizes: bool = False,
) -> None:
    """Set a model's weights by name; those that are missing must be tied to others.

    With `dequantizes` all become plain ones of the model's dtype, one after another. Raises
    ModelLoadError for names that are missing and shapes that differ.
    """
    needed = set(model.state_dict())
    unused = []
    for name, tensor in tensors:
        if name not in needed:
            unused.append(name)
            continue
        _set(model, name, tensor, dequantizes=dequantizes)
        needed.discard(name)
    model.tie_weights()
    loaded = {id(_weight(model, name)) for name in set(model.state_dict()) - needed}
    missing = sorted(name for name in needed if id(_weight(model, name)) not in loaded)
    if missing:
        raise ModelLoadError(
            f"the weights lack {len(missing)} tensors that the model has, such as {missing[0]}"
        )
    if unused:
        log.warning(
            "%d tensors of the weights have no place in the model and are not used, such as %s",
            len(unused), ", ".join(sorted(unused)[:3]),
        )  # fmt: skip


def _weight(model: nn.Module, name: str) -> torch.Tensor:
    parent, _, last = name.rpartition(".")
    weight: torch.Tensor = getattr(model.get_submodule(parent), last)
    return weight


def _set(model: nn.Module, name: str, tensor: torch.Tensor, *, dequantizes: bool) -> None:
    parent_name, _, last = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    old = getattr(parent, last)
    if old.shape != tensor.shape:
        raise ModelLoadError(
            f"tensor {name} has the shape {list(tensor.shape)}, and the model's is "
            f"{list(old.shape)}; the weights are of another model than its configuration"
        )
    if not isinstance(tensor, QuantizedWeight):
        tensor = tensor.to(old.dtype)
    elif dequantizes or type(parent) not in QUANTIZABLE:
        tensor = tensor.dequantized(old.dtype)
    if last in parent._buffers:
        parent._buffers[last] = tensor
    else:
        parent._parameters[last] = nn.Parameter(tensor, requires_grad=False)
