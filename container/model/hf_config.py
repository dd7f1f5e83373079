"""transformers' configurations, read in one way for all models."""

from transformers import PretrainedConfig


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return the language model's part; models with other parts keep it on a level of its own."""
    return getattr(config, "text_config", None) or config
