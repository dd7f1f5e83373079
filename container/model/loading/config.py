"""A model's configuration: config.json, the settings that change it, dtypes."""

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, GenerationConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from container.errors import ModelLoadError, one_line
from container.images.reader import PROCESSOR_FILES
from container.model.hf_config import stretch, text_config
from container.model.kernels.processor import has_bf16
from container.settings.model import ModelSettings
from container.text.templates.turn_end import turn_end
from container.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)


def read_config(settings: ModelSettings, path: Path) -> PretrainedConfig:
    """Read config.json and apply the RoPE settings. Raises ModelLoadError or ConfigError."""
    config = load_config(path, trust_remote_code=settings.trust_remote_code)
    if settings.rope_scaling is not None or settings.rope_factor is not None:
        stretch(config, settings.rope_factor or 1.0)
    return config


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Resolve `auto` to the dtype that is fastest on this device."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if has_bf16() else torch.float32


def choose_cache_dtype(name: str) -> torch.dtype | None:
    """Return the KV cache's dtype; None for that of the weights."""
    return None if name == "auto" else getattr(torch, name.replace("fp8", "float8"))


def load_config(path: Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Read config.json and check that the model generates text. Raises ModelLoadError."""
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
        not config.is_encoder_decoder
        and getattr(config, "is_decoder", None) is False
        and config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )
    if config.is_encoder_decoder:
        known, auto_class = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, "AutoModelForSeq2SeqLM"
    else:
        known, auto_class = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "AutoModelForCausalLM"
    is_own_code = auto_class in (getattr(config, "auto_map", None) or {})
    is_known = config.model_type in known and not is_encoder
    if not is_known and not is_own_code and not is_multimodal(path, config):
        raise ModelLoadError(
            f"{path}: a {config.model_type} model does not generate text "
            "(it is neither a causal language model nor an encoder with a decoder)"
        )
    return config


def is_multimodal(path: Path, config: PretrainedConfig) -> bool:
    """Whether it is a vision-language model with an image processor's files."""
    return (
        config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        and not config.is_encoder_decoder
        and getattr(config, "vision_config", None) is not None
        and any((path / name).is_file() for name in PROCESSOR_FILES)
    )


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name without the prefix `torch.`."""
    return str(dtype).removeprefix("torch.")


def end_token_ids(
    path: Path, config: PretrainedConfig, tokenizer_ids: frozenset[int] = frozenset()
) -> frozenset[int]:
    """Read the ids that end a completion: generation_config.json's, else config.json's.

    The tokenizer's are joined with them, as some models name only one of both in either place.
    Ids that the model does not have are left out, with a warning. Raises ModelLoadError for values
    that are no ids.
    """
    vocabulary: int = text_config(config).vocab_size
    own = frozenset(token_id for token_id in tokenizer_ids if token_id < vocabulary)
    for source, value in _end_token_values(path, config):
        values = value if isinstance(value, list | tuple) else [value]
        ids = [_token_id(source, one) for one in values if one is not None]
        known = frozenset(token_id for token_id in ids if 0 <= token_id < vocabulary)
        if unknown := sorted(set(ids) - known):
            log.warning(
                "%s: eos_token_id has ids outside of the vocabulary (0 to %d), which are left out: "
                "%s",
                source, vocabulary - 1, unknown,
            )  # fmt: skip
        if known:
            return known | own
    if own:
        return own
    log.warning("the model has no end token; only length and stop strings end a completion")
    return frozenset()


def turn_end_ids(tokenizer: Tokenizer, known: frozenset[int], vocabulary: int) -> frozenset[int]:
    """Return the token that the chat template ends answers with, if no file names it as an end.

    Models that were tuned on another template than their base model's often lack it there, and
    would go on with the user's next turn. A model without any end token is left without one.
    """
    if not known or not tokenizer.has_chat_template:
        return frozenset()
    ends = turn_end(tokenizer.chat_template, tokenizer.render_probe, tokenizer.special_tokens_in)
    ids = frozenset(ends) - known
    for token_id in ids:
        log.warning(
            "end tokens: the chat template ends answers with %r (%d), which neither "
            "generation_config.json nor the tokenizer names; it ends completions, too",
            ends[token_id], token_id,
        )  # fmt: skip
    return frozenset(token_id for token_id in ids if token_id < vocabulary)


def _end_token_values(path: Path, config: PretrainedConfig) -> Iterator[tuple[Path, object]]:
    """Yield the values of eos_token_id with their files, the most important first."""
    generation_path = path / "generation_config.json"
    if generation_path.is_file():
        try:
            generation = GenerationConfig.from_pretrained(path)
        except Exception as error:  # see load_model
            raise ModelLoadError(f"{generation_path} cannot be used: {one_line(error)}") from error
        yield generation_path, generation.eos_token_id
    yield path / "config.json", getattr(config, "eos_token_id", None)
    yield path / "config.json", getattr(text_config(config), "eos_token_id", None)


def _token_id(source: Path, value: object) -> int:
    """Return an id that some tools write as a float. Raises ModelLoadError for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ModelLoadError(
        f"{source}: eos_token_id has {value!r}, which is no token id; write the number of the end "
        "token, or a list of numbers"
    )
