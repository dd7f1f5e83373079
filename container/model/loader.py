"""The loader: from settings to an engine with a model in it, checked before it serves.

The composition root of the engine process; runs once, reports each stage in a line.
"""

import logging
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.utils.tqdm import disable_progress_bars as disable_hub_bars
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from container.engine.batch import Batch, ModelRunner, Scheduled
from container.engine.loop import Engine, EngineConfig
from container.engine.sequence import Sequence
from container.errors import ConfigError, ModelLoadError
from container.grammar.matcher import GrammarCompiler
from container.images.reader import PROCESSOR_FILES, ImageReader
from container.messages import EngineInfo, SamplingParams
from container.model import probe
from container.model.adapter_store import open_store
from container.model.lora import Updates
from container.model.preparing import LoadedModel, make_runner, prepare, prepare_image_text
from container.model.quantize import INT8, quantizer_options
from container.model.rope import stretch
from container.model.sizing import size_engine
from container.model.source import ModelFiles, find_model
from container.settings import Settings
from container.text.tokenizer import Tokenizer
from container.worker import Progress

log = logging.getLogger(__name__)


def load_engine(settings: Settings, progress: Progress) -> tuple[Engine, EngineInfo]:
    """Find, load, check and size. Raises ModelLoadError or ConfigError."""
    device = choose_device(settings.num_gpus)
    dtype = choose_dtype(settings.dtype, device)
    progress(f"looking for {settings.model_source()}")
    files = find_model(settings.model_source(), revision=settings.revision, token=settings.hf_token)
    model_config = load_config(files.path, trust_remote_code=settings.trust_remote_code)
    if settings.rope_scaling is not None or settings.rope_factor is not None:
        stretch(model_config, settings.rope_factor or 1.0)
    tokenizer = Tokenizer.from_folder(
        files.path,
        trust_remote_code=settings.trust_remote_code,
        template_path=settings.tokenizer_config_path,
    )
    options = quantizer_options(settings.quantize, model_config, device)
    progress(f"loading weights as {_name(dtype)} on {device.type}")
    reader = None
    if reads_images(files.path, model_config):
        reader = ImageReader.from_folder(files.path, tokenizer)
    model = load_model(
        files.path, model_config, dtype, device, trust_remote_code=settings.trust_remote_code,
        in_int8=settings.quantize == INT8, quantizer=options, reader=reader,
    )  # fmt: skip
    progress("sizing the KV cache")
    config = size_engine(settings, model)
    ends = end_token_ids(files.path, model.config)
    updates = Updates(model.module, model.dtype, model.device)
    runner = make_runner(model, config, end_token_ids=ends, updates=updates)
    progress("warming up")
    warm_up(runner, config)
    compile_grammar = None
    if tokenizer.is_fast:
        compile_grammar = GrammarCompiler(
            tokenizer.serialise, model.text_config.vocab_size, ends
        ).compile
    engine = Engine(
        runner,
        config,
        end_token_ids=ends,
        compile_grammar=compile_grammar,
        adapters=open_store(settings, updates, progress),
    )
    return engine, _info(files, model, config, settings.quantize)


def disable_progress_bars() -> None:
    """Keep bars that redraw a line out of a log that is not a terminal."""
    transformers.utils.logging.disable_progress_bar()
    disable_hub_bars()


def choose_device(num_gpus: int | None) -> torch.device:
    """Take the GPU if there is one. Raises ConfigError for more GPUs than there are."""
    available = torch.cuda.device_count()
    if num_gpus is not None and num_gpus > available:
        raise ConfigError([f"SM_NUM_GPUS={num_gpus}, but this machine has {available} GPUs"])
    if num_gpus is not None and num_gpus > 1:
        raise ConfigError([f"SM_NUM_GPUS={num_gpus}: this version uses one GPU; set it to 1"])
    return torch.device("cuda" if available and num_gpus != 0 else "cpu")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Resolve `auto` to what the processor is fast at."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    is_fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if is_fast else torch.float32


def load_model(
    path: Path,
    config: PretrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    trust_remote_code: bool = False,
    in_int8: bool = False,
    quantizer: dict[str, Any] | None = None,
    reader: ImageReader | None = None,
) -> LoadedModel:
    """Load a language model and find the way to serve it. Raises ModelLoadError or ConfigError.

    With a `reader`, it is a vision-language model.
    """
    loaded: tuple[PreTrainedModel, dict[str, Any]]
    kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    if reader is not None:
        kind = AutoModelForImageTextToText
    try:
        loaded = kind.from_pretrained(
            path,
            output_loading_info=True,
            config=config,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            attn_implementation="eager",  # the reference that paged attention is checked against
            **(quantizer or {}),
        )
    except Exception as error:  # a broken checkpoint fails anywhere in transformers
        raise ModelLoadError(f"{path}: the model cannot be loaded: {_told(error)}") from error
    module, facts = loaded
    missing = sorted(facts["missing_keys"])
    if missing:
        raise ModelLoadError(
            f"{path}: the weights lack {len(missing)} tensors that config.json calls for, such as "
            f"{missing[0]}"
        )
    if not quantizer:  # a quantized one is there already, and may not be moved
        module.to(device)  # type: ignore[arg-type]  # transformers types it for its own decorator
    module.eval()
    try:
        if reader is not None:
            if in_int8:
                raise ConfigError([f"QUANTIZE={INT8} is not for vision-language models; unset it"])
            return prepare_image_text(module, dtype, device, reader.read_probe())
        return prepare(module, dtype, device, in_int8=in_int8)
    except (ModelLoadError, ConfigError):
        raise
    except Exception as error:  # sizes in config.json that do not fit each other
        raise ModelLoadError(f"{path}: the model cannot be run: {_told(error)}") from error


def end_token_ids(path: Path, config: PretrainedConfig) -> frozenset[int]:
    """Ids that end a completion: generation_config.json's, else config.json's."""
    found = getattr(config, "eos_token_id", None)
    if found is None:
        found = getattr(probe.text_config(config), "eos_token_id", None)
    if (path / "generation_config.json").is_file():
        try:
            generation = GenerationConfig.from_pretrained(path)
        except Exception as error:  # see load_model
            raise ModelLoadError(
                f"{path}/generation_config.json cannot be used: {_told(error)}"
            ) from error
        found = generation.eos_token_id if generation.eos_token_id is not None else found
    if found is None:
        log.warning("the model names no end token; only length and stop strings end a completion")
        return frozenset()
    return frozenset(found if isinstance(found, list) else [found])


def warm_up(runner: ModelRunner, config: EngineConfig) -> None:
    """Run a prompt and a few single tokens, so that the first request finds all things made."""
    prompt_len = min(8, config.max_input_tokens)
    sequence = Sequence(0, [0] * prompt_len, SamplingParams(max_new_tokens=1))
    sequence.block_table = list(range(-(-(prompt_len + 1) // config.block_size)))
    runner.execute(Batch((Scheduled(sequence, prompt_len),)))
    sequence.token_ids.append(0)
    sequence.num_computed = prompt_len
    runner.execute(Batch((Scheduled(sequence, 1),)))


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
        raise ModelLoadError(f"{path}/config.json cannot be used: {_told(error)}{hint}") from error
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
    if not is_known and not is_own_code and not reads_images(path, config):
        raise ModelLoadError(
            f"{path}: a {config.model_type} model does not generate text "
            "(it is neither a causal language model nor an encoder with a decoder)"
        )
    return config


def reads_images(path: Path, config: PretrainedConfig) -> bool:
    """Whether it is a vision-language model, with the files that say how it sees images."""
    return (
        config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        and not config.is_encoder_decoder
        and getattr(config, "vision_config", None) is not None
        and any((path / name).is_file() for name in PROCESSOR_FILES)
    )


def _info(
    files: ModelFiles, model: LoadedModel, config: EngineConfig, quantize: str | None
) -> EngineInfo:
    return EngineInfo(
        model_id=files.model_id,
        model_path=os.fspath(files.path),
        model_sha=files.sha,
        model_type=model.config.model_type,
        dtype=_name(model.dtype),
        device=model.device.type,
        vocabulary=model.text_config.vocab_size,
        max_input_tokens=config.max_input_tokens,
        max_total_tokens=config.max_total_tokens,
        cache_tokens=config.num_blocks * config.block_size,
        max_batch_tokens=config.max_batch_tokens,
        attention=model.attention,
        quantize=quantize,
        reads_images=model.reads_images,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _told(error: BaseException) -> str:
    """An exception in a line; its kind too, since many messages mean little without it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:400]}"
