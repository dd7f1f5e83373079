"""Loads a model whose weights keep their four or eight bits: the formats of this folder."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PretrainedConfig, PreTrainedModel

from container.errors import ModelLoadError
from container.files import read_json
from container.model.formats.gguf_files import SUFFIX, choose_files, read_weights
from container.model.formats.int32_weights import METHODS, Layout, choose_layout
from container.model.formats.quantized_model import empty_model, set_weights
from container.model.layers.quantized_weight import QuantizedWeight


def is_gguf(path: Path) -> bool:
    """Whether a folder's weights are in GGUF files, and in no others."""
    has_others = any(any(path.glob(f"*{suffix}")) for suffix in (".safetensors", ".bin"))
    return not has_others and any(path.glob(f"*{SUFFIX}"))


def quantization_of(config: PretrainedConfig) -> dict[str, Any] | None:
    """Return config.json's quantization_config, if it has one."""
    quantization: Any = getattr(config, "quantization_config", None)
    if quantization is None or isinstance(quantization, dict):
        return quantization
    fields: dict[str, Any] = quantization.to_dict()
    return fields


def method_name(path: Path, config: PretrainedConfig) -> str | None:
    """Return how a checkpoint is quantized, such as `gguf` or `awq`; None if it is not."""
    if is_gguf(path):
        return "gguf"
    quantization = quantization_of(config)
    method = None if quantization is None else quantization.get("quant_method")
    return None if method is None else str(getattr(method, "value", method))


def has_few_bits(path: Path, config: PretrainedConfig) -> bool:
    """Whether `load_few_bits` can load a checkpoint; transformers loads all others."""
    return is_gguf(path) or method_name(path, config) in METHODS


def load_few_bits(
    path: Path,
    config: PretrainedConfig,
    dtype: torch.dtype,
    auto_class: Any,
    *,
    trust_remote_code: bool,
    dequantizes: bool = False,
) -> PreTrainedModel:
    """Load a checkpoint of GGUF, AWQ, GPTQ or compressed-tensors. Raises ModelLoadError.

    `dequantizes` computes the weights in `dtype`, for a device without kernels for few bits.
    """
    quantization = quantization_of(config)
    plain = copy.deepcopy(config)
    if quantization is not None:
        del plain.quantization_config
    layout = None if is_gguf(path) else choose_layout(quantization or {})
    model = empty_model(auto_class, plain, dtype, trust_remote_code=trust_remote_code)
    if layout is None:
        tensors = read_weights(choose_files(path), model, dtype)
    else:
        tensors = _packed_weights(path, layout, dtype)
    set_weights(model, tensors, dequantizes=dequantizes)
    return model


def _packed_weights(
    path: Path, layout: Layout, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield weights of safetensors files, those of a packed layer as one."""
    file_by_name = _files(path)
    layers: dict[str, list[str]] = {}
    for name in file_by_name:
        layer, _, suffix = name.rpartition(".")
        if suffix in layout.suffixes:
            layers.setdefault(layer, []).append(suffix)
        else:
            yield name, _read(file_by_name, name)
    for layer, suffixes in layers.items():
        parts = {suffix: _read(file_by_name, f"{layer}.{suffix}") for suffix in suffixes}
        yield f"{layer}.weight", _read_layer(layer, parts, layout, dtype)


def _read_layer(
    layer: str, parts: dict[str, torch.Tensor], layout: Layout, dtype: torch.dtype
) -> QuantizedWeight:
    try:
        return layout.read(parts, dtype)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ModelLoadError(
            f"tensors of {layer} do not belong together: {type(error).__name__}: {error}"
        ) from error


def _read_index(path: Path) -> dict[str, str]:
    """Read which file has each tensor. Raises ModelLoadError."""
    try:
        weight_map = read_json(path)["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise ModelLoadError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _files(path: Path) -> dict[str, Path]:
    """Return the file of each tensor."""
    files = sorted(path.glob("*.safetensors"))
    index = path / "model.safetensors.index.json"
    if index.is_file():
        files = sorted({path / name for name in _read_index(index).values()})
    if not files:
        raise ModelLoadError(f"{path}: quantized weights must be in *.safetensors files")
    file_by_name: dict[str, Path] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            file_by_name |= dict.fromkeys(opened.keys(), file)
    return file_by_name


def _read(file_by_name: dict[str, Path], name: str) -> torch.Tensor:
    with safe_open(file_by_name[name], framework="pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(name)
        return tensor
