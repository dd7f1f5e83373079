"""Reading and changing a transformers configuration."""

from transformers import PretrainedConfig

from container.errors import ConfigError


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return the language model's part; models with other parts keep it on a level of its own."""
    return getattr(config, "text_config", None) or config


def stretch(config: PretrainedConfig, factor: float) -> None:
    """Divide a model's positions by `factor` (linear scaling); its context grows by that.

    Changes the configuration before the model is made of it. Raises ConfigError for a model whose
    positions are of another kind.
    """
    parameters = getattr(config, "rope_parameters", None)
    context = getattr(config, "max_position_embeddings", None)
    if not isinstance(parameters, dict):
        parameters = {}
    kind = parameters.get("rope_type")
    if kind not in ("default", "linear") or not context:
        reason = f"its rope_type is {kind!r}" if kind else "it has no plain rotary positions"
        raise ConfigError([f"ROPE_SCALING cannot be used with a {config.model_type}: {reason}"])
    config.rope_parameters = parameters | {"rope_type": "linear", "factor": factor}
    config.max_position_embeddings = int(context * factor)
