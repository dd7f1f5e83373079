"""Reading, checking and changing a transformers configuration."""

import math
from collections.abc import Iterator
from typing import Any

from transformers import PretrainedConfig

from container.errors import ConfigError

# The names that configurations have for their sizes.
LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
SIZES = (
    *LAYERS, "hidden_size", "d_model", "n_embd", "vocab_size", "num_attention_heads", "n_heads",
    "n_head", "num_key_value_heads", "head_dim", "max_position_embeddings", "n_positions",
)  # fmt: skip
# The largest that any size may be: tensors have 64 bits for the product of two.
MAX_SIZE = 2**31 - 1
ROPE = ("rope_parameters", "rope_scaling")
ROPE_NUMBERS = ("rope_theta", "factor")


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return the language model's configuration, which multimodal models nest as `text_config`."""
    return getattr(config, "text_config", None) or config


def stretch(config: PretrainedConfig, factor: float) -> None:
    """Divide a model's positions by `factor` (linear RoPE scaling); its context grows by that.

    Changes the configuration, from which the model is built later. Raises ConfigError for a model
    with other position embeddings.
    """
    parameters = getattr(config, "rope_parameters", None)
    context = getattr(config, "max_position_embeddings", None)
    if not isinstance(parameters, dict):
        parameters = {}
    rope_type = parameters.get("rope_type")
    if rope_type not in ("default", "linear") or not context:
        reason = f"its rope_type is {rope_type!r}" if rope_type else "it has no plain RoPE"
        raise ConfigError([f"ROPE_SCALING cannot be used with a {config.model_type}: {reason}"])
    config.rope_parameters = parameters | {"rope_type": "linear", "factor": factor}
    config.max_position_embeddings = int(context * factor)


def find_unusable(config: dict[str, Any], num_tensors: int | None) -> str | None:
    """Return which value of a config.json no model can have, in words, or None.

    Building a model of such sizes takes minutes, all memory, or ends in an error about something
    else. `num_tensors` is the number of tensors of the weights, where it is known.
    """
    if not isinstance(config.get("text_config"), dict | None):
        return f"text_config is {config['text_config']!r:.40}, not an object"
    for prefix, values in _language_model(config):
        for name in SIZES:
            size = values.get(name)
            if isinstance(size, int | float | str) and not _is_size(size):
                return f"{prefix}{name} is {size!r:.40}, not a whole number from 1 to {MAX_SIZE}"
        for name in LAYERS:
            layers = values.get(name)
            if num_tensors is not None and isinstance(layers, int) and layers > num_tensors:
                return (
                    f"{prefix}{name} is {layers}, but the weights have {num_tensors} tensors, "
                    "fewer than one for each layer"
                )
        if (problem := _unusable_rope(values)) is not None:
            return prefix + problem
    return None


def _language_model(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects with the language model's values, each with the prefix of its names."""
    yield "", config
    if isinstance(nested := config.get("text_config"), dict):
        yield "text_config.", nested


def _is_size(size: float | str) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and 0 < size <= MAX_SIZE


def _unusable_rope(values: dict[str, Any]) -> str | None:
    """Return which number of the rotary position embeddings is not positive, or None."""
    prefixes = [("", values)]
    prefixes += [(f"{name}.", values[name]) for name in ROPE if isinstance(values.get(name), dict)]
    for prefix, numbers in prefixes:
        for name in ROPE_NUMBERS:
            number = numbers.get(name)
            if isinstance(number, int | float) and not 0 < number < math.inf:
                return f"{prefix}{name} is {number!r:.40}, not a positive number"
    return None
