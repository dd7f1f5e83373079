"""Reads LoRA adapters in peft's format: `adapter_config.json` and `adapter_model.safetensors`.

The update of a layer is x A^T B^T times lora_alpha / r, or / sqrt(r) with `use_rslora`. Options
that change the model in another way (DoRA, biases, whole modules) are rejected with an error that
names them.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from container.errors import InvalidParameter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
KEY = re.compile(r"^(.*)\.lora_([AB])(?:\.default)?\.weight$")
# peft options that this server does not support, with their accepted (neutral) values.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "megatron_config": (None,),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "alora_invocation_tokens": (None,),
}


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """One layer's update: a is [rank, in_features], b is [out_features, rank], scaled."""

    a: torch.Tensor
    b: torch.Tensor


Weights = dict[str, LoraWeights]


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check adapter_config.json. Raises InvalidParameter."""
    path = folder / CONFIG
    if not path.is_file():
        raise InvalidParameter(
            f"{folder}: {CONFIG} is missing; `src` must be an adapter in peft's format", field="src"
        )
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise InvalidParameter(f"{path} is not valid JSON: {error}", field="src") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise InvalidParameter(f"{path}: only LoRA adapters are served (peft_type)", field="src")
    for name, allowed in NEUTRAL.items():
        if name in config and config[name] not in allowed:
            raise InvalidParameter(f"{path}: {name}={config[name]!r} is not supported", field="src")
    return config


def read_weights(folder: Path, shapes: Mapping[str, tuple[int, int]]) -> Weights:
    """Read an adapter's updates by layer; `shapes` has (in, out) of each adaptable layer.

    Raises InvalidParameter for layers or shapes that the model does not have.
    """
    config = read_config(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise InvalidParameter(f"{folder}: {WEIGHTS} is missing", field="src")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InvalidParameter(f"{path} cannot be read: {error}", field="src") from None
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = KEY.match(key.removeprefix(PREFIX))
        if match is None:
            raise InvalidParameter(
                f"{path}: tensor {key} is not a LoRA weight (lora_A or lora_B)", field="src"
            )
        halves.setdefault(match[1], {})[match[2]] = tensor
    return {layer: _low_rank(path, layer, parts, config, shapes) for layer, parts in halves.items()}


def _low_rank(
    path: Path,
    layer: str,
    parts: dict[str, torch.Tensor],
    config: dict[str, Any],
    shapes: Mapping[str, tuple[int, int]],
) -> LoraWeights:
    if layer not in shapes:
        raise InvalidParameter(
            f"{path}: the model has no layer {layer} that an adapter can change", field="src"
        )
    if parts.keys() != {"A", "B"}:
        raise InvalidParameter(
            f"{path}: {layer} has only lora_{''.join(parts)}; an update needs lora_A and lora_B",
            field="src",
        )
    a, b = parts["A"].float(), parts["B"].float()
    inputs, outputs = shapes[layer]
    if a.shape != (a.shape[0], inputs) or b.shape != (outputs, a.shape[0]):
        raise InvalidParameter(
            f"{path}: {layer} takes updates of {inputs} x r and r x {outputs}, not "
            f"{a.shape[-1]} x {a.shape[0]} and {b.shape[-1]} x {b.shape[0]}; the adapter was "
            "trained for another model",
            field="src",
        )
    rank = _pattern(config.get("rank_pattern"), layer, config["r"])
    alpha = _pattern(config.get("alpha_pattern"), layer, config.get("lora_alpha") or rank)
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LoraWeights(a, b * scale)


def _pattern(patterns: dict[str, float] | None, layer: str, default: float) -> float:
    """Look up a layer's value by peft's rule: a pattern matches a name's end, after a dot."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return value
    return default
