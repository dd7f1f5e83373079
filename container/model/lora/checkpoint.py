"""Reads LoRA adapters in peft's format: `adapter_config.json` and `adapter_model.safetensors`.

The update of a layer is x A^T B^T times lora_alpha / r, or / sqrt(r) with `use_rslora`. Options
that change the model in another way (DoRA, biases, whole modules) are rejected with an error that
names them.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load

from container.errors import InvalidParameter, one_line
from container.settings.process_env import outward_links

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
KEY = re.compile(r"^(.*)\.lora_([AB])(?:\.default)?\.weight$")
MAX_CONFIG_BYTES = 2**20
# Python's `re` may need exponential time for a repeated group, and n**k for k repetitions.
MAX_REPETITIONS = 3
REPETITION = re.compile(r"(?<!\\)[*+{]")
REPEATED_GROUP = re.compile(r"(?<!\\)\)[*+{?]")
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

Rank = Annotated[int, msgspec.Meta(ge=1)]


class LoraConfig(msgspec.Struct, frozen=True):
    """The fields of adapter_config.json that scale the update, as peft writes them."""

    r: Rank
    lora_alpha: float | None = None
    use_rslora: bool | None = None
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, float] | None = None

    def scale(self, layer: str) -> float:
        """Return the factor of a layer's update."""
        rank = _pattern(self.rank_pattern, layer, self.r)
        default = rank if self.lora_alpha is None else self.lora_alpha
        alpha = _pattern(self.alpha_pattern, layer, default)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """One layer's update: a is [rank, in_features], b is [out_features, rank], scaled."""

    a: torch.Tensor
    b: torch.Tensor


Weights = dict[str, LoraWeights]


def read_config(folder: Path) -> LoraConfig:
    """Read and check adapter_config.json. Raises InvalidParameter."""
    path = folder / CONFIG
    if not os.path.isfile(path):
        raise _invalid(f"{folder}: {CONFIG} is missing; `src` must be an adapter in peft's format")
    if links := outward_links(folder):
        raise _invalid(f"{links[0]} is a link out of the adapter's folder; copy the file into it")
    try:
        raw = _read_json(path)
    except OSError as error:
        raise _invalid(f"{path} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _invalid(f"{path} is not valid JSON: {error}") from None
    if not isinstance(raw, dict) or raw.get("peft_type") != "LORA":
        raise _invalid(f"{path}: only LoRA adapters are served (peft_type)")
    for name, allowed in NEUTRAL.items():
        if name in raw and raw[name] not in allowed:
            raise _invalid(f"{path}: {name}={_short(raw[name])} is not supported")
    try:
        config = msgspec.convert(raw, LoraConfig)
    except msgspec.ValidationError as error:
        raise _invalid(f"{path}: {error}") from None
    for pattern in [*(config.rank_pattern or {}), *(config.alpha_pattern or {})]:
        _check_pattern(path, pattern)
    return config


def _read_json(path: Path) -> Any:
    """Read a JSON file of moderate size. Raises OSError, ValueError or DecodeError."""
    with path.open("rb") as file:
        text = file.read(MAX_CONFIG_BYTES + 1)
    if len(text) > MAX_CONFIG_BYTES:
        raise ValueError(f"it has more than {MAX_CONFIG_BYTES} bytes")
    return msgspec.json.decode(text)


def _check_pattern(path: Path, pattern: str) -> None:
    """Refuse a pattern that is not a regex, or one that may take long to match."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise _invalid(f"{path}: {_short(pattern)} is not a valid pattern: {error}") from None
    if REPEATED_GROUP.search(pattern) or len(REPETITION.findall(pattern)) > MAX_REPETITIONS:
        raise _invalid(
            f"{path}: the pattern {_short(pattern)} may take long to match; name the layers, or "
            f"use at most {MAX_REPETITIONS} repetitions and no repeated group"
        )


def _short(value: object) -> str:
    return repr(value)[:100]


def _invalid(message: str) -> InvalidParameter:
    return InvalidParameter(message, field="src")


def read_weights(
    folder: Path, shapes: Mapping[str, tuple[int, int]], dtype: torch.dtype
) -> Weights:
    """Read an adapter's updates by layer; `shapes` has (in, out) of each adaptable layer.

    Raises InvalidParameter for layers or shapes that the model does not have, and for values that
    are not finite in `dtype`, which would spread to the other rows of a batch.
    """
    config = read_config(folder)
    path = folder / WEIGHTS
    if not os.path.isfile(path):
        raise InvalidParameter(f"{folder}: {WEIGHTS} is missing", field="src")
    try:
        with safe_open(path, "pt") as file:
            halves = _halves(path, file.keys())
            for layer, keys in halves.items():
                sizes = {half: file.get_slice(key).get_shape() for half, key in keys.items()}
                _check_shapes(path, layer, sizes, shapes)
        # Not mapped: reading a mapped file that somebody cuts short ends the process.
        tensors = load(path.read_bytes())
        updates = {
            layer: (tensors[keys["A"]], tensors[keys["B"]]) for layer, keys in halves.items()
        }
    except KeyError as error:  # torch has no such type, or another file has taken the place
        raise _invalid(f"{path} cannot be read: {error.args[0]} is not known") from None
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InvalidParameter(f"{path} cannot be read: {one_line(error)}", field="src") from None
    weights = {}
    for layer, (a, b) in updates.items():
        if not (a.is_floating_point() and b.is_floating_point()):
            raise _invalid(
                f"{path}: {layer} has weights of type {a.dtype}, not of a floating point"
            )
        weights[layer] = update = LoraWeights(a.float(), b.float() * config.scale(layer))
        if not (_is_finite(update.a, dtype) and _is_finite(update.b, dtype)):
            raise _invalid(f"{path}: {layer} has values that are not finite as {dtype}")
    return weights


def _halves(path: Path, keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the names of each layer's tensors by `A` and `B`."""
    halves: dict[str, dict[str, str]] = {}
    for key in keys:
        match = KEY.match(key.removeprefix(PREFIX))
        if match is None:
            raise _invalid(f"{path}: tensor {key[:100]} is not a LoRA weight (lora_A or lora_B)")
        halves.setdefault(match[1], {})[match[2]] = key
    if not halves:
        raise _invalid(f"{path} has no tensors")
    return halves


def _is_finite(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    return bool(tensor.to(dtype).isfinite().all())


def _check_shapes(
    path: Path,
    layer: str,
    sizes: Mapping[str, list[int]],
    shapes: Mapping[str, tuple[int, int]],
) -> None:
    """Refuse an update that does not fit the model's layer, before anything of it is read."""
    if layer not in shapes:
        raise InvalidParameter(
            f"{path}: the model has no layer {layer[:100]} that an adapter can change", field="src"
        )
    if sizes.keys() != {"A", "B"}:
        raise InvalidParameter(
            f"{path}: {layer} has only lora_{''.join(sizes)}; an update needs lora_A and lora_B",
            field="src",
        )
    a, b = sizes["A"], sizes["B"]
    inputs, outputs = shapes[layer]
    rank = a[0] if a else 0
    if not 0 < rank <= max(inputs, outputs) or a != [rank, inputs] or b != [outputs, rank]:
        raise InvalidParameter(
            f"{path}: {layer} takes updates of {inputs} x r and r x {outputs}, not of the shapes "
            f"{a[::-1]} and {b[::-1]}; the adapter was trained for another model",
            field="src",
        )


def _pattern(patterns: Mapping[str, float] | None, layer: str, default: float) -> float:
    """Look up a layer's value by peft's rule: a pattern matches a name's end, after a dot."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return value
    return default
