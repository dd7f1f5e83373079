"""Quantization on load: the values of QUANTIZE, and whether each can work here.

This server itself quantizes any model to `int8` (container.model.layers.int8_linear), and on a CPU
to `int4` (container.model.layers.quantized_weight). The other
names are TGI's, for transformers' quantizers: some need a checkpoint that was quantized that way,
others quantize any checkpoint on load. A value that cannot work is refused before the weights are
read, with the reason.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    BitsAndBytesConfig,
    EetqConfig,
    FineGrainedFP8Config,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.quantizers.auto import AutoHfQuantizer

from container.errors import ConfigError, one_line
from container.model.layers.int8_linear import BatchPhase
from container.model.layers.quantized_weight import (
    GROUP_SIZE,
    ROWS_AT_ONCE,
    can_quantize_to_int4,
    quantized_to_int4,
)
from container.model.reference_check import Convert, Mismatch

# The largest squared error of four bits, in multiples of that of even steps; scales are rounded.
WORSE_THAN_EVEN = 1.1

INT8, INT4 = OWN_METHODS = ("int8", "int4")


def _bits_and_bytes_4(quant_type: str) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=quant_type)


# Methods that quantize any checkpoint while loading it.
ON_LOAD: dict[str, Callable[[], Any]] = {
    "bitsandbytes": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "bitsandbytes-nf4": lambda: _bits_and_bytes_4("nf4"),
    "bitsandbytes-fp4": lambda: _bits_and_bytes_4("fp4"),
    "eetq": lambda: EetqConfig("int8"),
    "fp8": FineGrainedFP8Config,
}
# Methods that need a checkpoint quantized that way.
BEFORE = ("gptq", "awq", "compressed-tensors")
# Methods whose checkpoints transformers dequantizes to the model's dtype on a CPU.
DEQUANTIZED_ON_CPU = ("fp8", "mxfp4")
NOT_OFFERED = {
    "exl2": "transformers does not load it; use a GPTQ or AWQ checkpoint",
    "marlin": "transformers has no such kernels of its own; set gptq for a GPTQ checkpoint",
}


def quantizer_options(
    name: str | None, config: PretrainedConfig, device: torch.device
) -> dict[str, Any]:
    """Return the options of `from_pretrained` for QUANTIZE. Raises ConfigError with the reason."""
    own_config: Any = getattr(config, "quantization_config", None)
    method = _method(own_config)
    placed: dict[str, Any] = {"device_map": {"": device}}
    if method in BEFORE and device.type == "cpu" and name in (None, method):
        return {}  # container.model.formats loads it
    if name is None:
        return {} if own_config is None else placed
    if name in OWN_METHODS:
        if is_dequantized(config, device):
            return placed
        _check_own(name, method, device)
        return {}
    if name in NOT_OFFERED:
        raise _refused(name, NOT_OFFERED[name])
    if device.type == "cpu":
        raise _refused(name, "its kernels need a GPU, and this server runs on a CPU; set int8")
    if name in BEFORE:
        if method != name:
            state = "is not quantized" if own_config is None else f"is quantized with {method}"
            raise _refused(name, f"the checkpoint {state}")
        requested = own_config
    else:
        requested = ON_LOAD[name]()
    try:
        quantizer = AutoHfQuantizer.from_config(requested, pre_quantized=name in BEFORE)
        quantizer.validate_environment(device_map={"": device}, weights_only=True)
    except Exception as error:  # a missing package, an old GPU; each quantizer has its own
        raise _refused(name, str(error)) from error
    return placed if name in BEFORE else placed | {"quantization_config": requested}


def missing_quantizer(config: PretrainedConfig, device: torch.device) -> str | None:
    """Return why transformers cannot serve a quantized checkpoint on a GPU here; None if it can."""
    own_config: Any = getattr(config, "quantization_config", None)
    try:
        quantizer = AutoHfQuantizer.from_config(own_config, pre_quantized=True)
        quantizer.validate_environment(device_map={"": device}, weights_only=True)
    except Exception as error:  # a missing package, an old GPU; each quantizer has its own
        return one_line(error)
    return None


def is_dequantized(config: PretrainedConfig, device: torch.device) -> bool:
    """Whether transformers dequantizes a checkpoint while loading it."""
    method = _method(getattr(config, "quantization_config", None))
    return device.type == "cpu" and method in DEQUANTIZED_ON_CPU


@torch.no_grad()
def cast_parameters(module: PreTrainedModel, dtype: torch.dtype) -> None:
    """Cast a dequantized model's parameters, of which some have the checkpoint's own dtype."""
    in_fp32 = {*(module._keep_in_fp32_modules or ()), *(module._keep_in_fp32_modules_strict or ())}
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and not any(part in name for part in in_fp32):
            parameter.data = parameter.data.to(dtype)


def _check_own(name: str, method: str | None, device: torch.device) -> None:
    if method is not None:
        raise _refused(name, f"the checkpoint is quantized already ({method})")
    if name == INT4 and device.type != "cpu":
        raise _refused(name, "its kernels are for CPUs; set bitsandbytes-nf4 or int8")


def _method(own_config: Any) -> str | None:
    method = own_config.get("quant_method") if isinstance(own_config, dict) else own_config
    method = getattr(method, "quant_method", method)
    return None if method is None else str(getattr(method, "value", method))


def _refused(name: str, reason: str) -> ConfigError:
    return ConfigError([f"QUANTIZE={name} cannot work here: {reason}"])


def rounding(phase: BatchPhase | None, *, int4_weights: bool) -> Convert | None:
    """Return the conversion to fewer bits and back that the exact layers are computed with.

    It shares no arithmetic with the kernels and has a separate check, so that a fault in the
    quantization of layers cannot hide in both.
    """
    if int4_weights:
        return _through_int4
    return None if phase is None else _through_int8


def _through_int8(module: torch.nn.Module, name: str, weight: torch.Tensor) -> torch.Tensor:
    """Round a linear layer's weight to eight bits and back; return other weights unchanged."""
    if type(module) is not torch.nn.Linear or name != "weight":
        return weight
    rounded = torch.empty_like(weight)
    for rows, out in zip(weight.split(ROWS_AT_ONCE), rounded.split(ROWS_AT_ONCE), strict=True):
        step = rows.abs().amax(1, keepdim=True) / 127
        out.copy_(torch.where(step > 0, (rows / step).round() * step, rows))
    return rounded


def _through_int4(module: torch.nn.Module, name: str, weight: torch.Tensor) -> torch.Tensor:
    """Round a linear layer's weight to four bits and back, with the limits that layers choose.

    Raises Mismatch if these are worse than the plainest ones, 16 even steps of a group's range.
    """
    if type(module) is not torch.nn.Linear or name != "weight" or not can_quantize_to_int4(weight):
        return weight
    groups = weight.unflatten(1, (-1, GROUP_SIZE))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = (high - low) / 15
    even = torch.where(step > 0, ((groups - low) / step).round() * step + low, groups)
    chosen = quantized_to_int4(weight).dequantized(weight.dtype)
    off, limit = ((part - weight).square().sum() for part in (chosen, even.flatten(1)))
    if not off <= limit * WORSE_THAN_EVEN:
        raise Mismatch(f"four bits move the weights by {off:.2g} (limit {limit:.2g})")
    return chosen
