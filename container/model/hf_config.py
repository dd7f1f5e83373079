"""Reading and changing a transformers configuration."""

from transformers import PretrainedConfig

from container.errors import ConfigError


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
