"""A model's configuration: config.json, the settings that change it, formats."""

from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from container.errors import ModelLoadError, one_line
from container.images.reader import PROCESSOR_FILES
from container.model.hf_config import stretch
from container.settings.model import ModelSettings


def read_config(settings: ModelSettings, path: Path) -> PretrainedConfig:
    """Read config.json, with what the settings change in it. Raises ModelLoadError, ConfigError."""
    config = load_config(path, trust_remote_code=settings.trust_remote_code)
    if settings.rope_scaling is not None or settings.rope_factor is not None:
        stretch(config, settings.rope_factor or 1.0)
    return config


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Resolve `auto` to what the processor is fast at."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    is_fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if is_fast else torch.float32


def choose_cache_dtype(name: str) -> torch.dtype | None:
    """The KV cache's format; None for that of the weights."""
    return None if name == "auto" else getattr(torch, name.replace("fp8", "float8"))


def load_config(path: Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Read config.json and check that it is of a language model. Raises ModelLoadError."""
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # see load_model
        hint = (
            "; set HF_MODEL_TRUST_REMOTE_CODE=true if you trust the model's own code"
            if "trust_remote_code" in str(error)
            else f" (transformers {transformers.__version__})"
        )
        raise ModelLoadError(
            f"{path}/config.json cannot be used: {one_line(error)}{hint}"
        ) from error
    is_encoder = (
        getattr(config, "is_decoder", None) is False
        and config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )
    if config.is_encoder_decoder:
        known, kind = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, "AutoModelForSeq2SeqLM"
    else:
        known, kind = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "AutoModelForCausalLM"
    is_own_code = kind in (getattr(config, "auto_map", None) or {})
    is_known = config.model_type in known and not is_encoder
    if not is_known and not is_own_code and not is_multimodal(path, config):
        raise ModelLoadError(
            f"{path}: a {config.model_type} model does not generate text "
            "(it is neither a causal language model nor an encoder with a decoder)"
        )
    return config


def is_multimodal(path: Path, config: PretrainedConfig) -> bool:
    """Whether it is a vision-language model, with the files that say how it sees images."""
    return (
        config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        and not config.is_encoder_decoder
        and getattr(config, "vision_config", None) is not None
        and any((path / name).is_file() for name in PROCESSOR_FILES)
    )


def dtype_name(dtype: torch.dtype) -> str:
    """Its name without torch's."""
    return str(dtype).removeprefix("torch.")
