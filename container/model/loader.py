"""The loader: from settings to an engine with a model in it, checked before it serves.

The composition root of the engine process; runs once, reports each stage in a line.
"""

import logging
import os
import tempfile
from collections import Counter
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
from transformers.distributed.configuration_utils import DistributedConfig
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
from container.model.placement import Machine, Placement, num_gpus, place, weight_bytes
from container.model.preparing import LoadedModel, make_runner, prepare, prepare_image_text
from container.model.quantize import INT8, quantizer_options
from container.model.ranks import MakeCache, Ranks
from container.model.rope import stretch
from container.model.sharding import least_over_ranks, make_plain
from container.model.sizing import capacity, size_engine
from container.model.source import ModelFiles, find_model
from container.settings import Settings
from container.text.tokenizer import Tokenizer
from container.worker import Progress

log = logging.getLogger(__name__)


def load_engine(settings: Settings, progress: Progress, copy: int = 0) -> tuple[Engine, EngineInfo]:
    """Find, load, check and size, for the copy of this number.

    Raises ModelLoadError or ConfigError.
    """
    progress(f"looking for {settings.model_source()}")
    files = find_model(settings.model_source(), revision=settings.revision, token=settings.hf_token)
    model_config = read_config(settings, files.path)
    placement, dtype = plan_load(settings, model_config, files.path, copy)
    tokenizer = Tokenizer.from_folder(
        files.path,
        trust_remote_code=settings.trust_remote_code,
        template_path=settings.tokenizer_config_path,
    )
    reader = None
    if reads_images(files.path, model_config):
        reader = ImageReader.from_folder(files.path, tokenizer)
    ranks = Ranks(files.path, placement.devices) if placement.is_split else None
    progress(f"loading weights as {_name(dtype)} on {placement}")
    model = load_weights(settings, files.path, model_config, dtype, placement, reader)
    progress("sizing the KV cache")
    config = size_engine(settings, model, agreed_capacity(settings, model, placement))
    ends = end_token_ids(files.path, model.config)
    if ranks is not None:
        ranks.tell(MakeCache(config.num_blocks, config.block_size))
    # Adapters are not split over ranks.
    updates = Updates(model.module, model.dtype, model.device) if ranks is None else None
    runner = make_runner(
        model, config, end_token_ids=ends, updates=updates, tell=ranks.tell if ranks else None
    )
    progress("warming up")
    warm_up(runner, config)
    compile_grammar = None
    if tokenizer.is_fast:
        compile_grammar = GrammarCompiler(
            tokenizer.serialise, model.text_config.vocab_size, ends
        ).compile
    made = Engine(
        runner,
        config,
        end_token_ids=ends,
        compile_grammar=compile_grammar,
        adapters=open_store(settings, updates, progress) if updates is not None else None,
    )
    return made, _info(files, model, config, settings, placement)


def disable_progress_bars() -> None:
    """Keep bars that redraw a line out of a log that is not a terminal."""
    transformers.utils.logging.disable_progress_bar()
    disable_hub_bars()


def read_config(settings: Settings, path: Path) -> PretrainedConfig:
    """Read config.json, with what the settings change in it. Raises ModelLoadError, ConfigError."""
    config = load_config(path, trust_remote_code=settings.trust_remote_code)
    if settings.rope_scaling is not None or settings.rope_factor is not None:
        stretch(config, settings.rope_factor or 1.0)
    return config


def plan_load(
    settings: Settings, config: PretrainedConfig, path: Path, copy: int
) -> tuple[Placement, torch.dtype]:
    """Decide where the weights go, and their format. Raises ConfigError."""
    machine = Machine.look()
    uses_gpu = num_gpus(settings, len(machine.gpu_bytes)) > 0
    dtype = choose_dtype(settings.dtype, torch.device("cuda" if uses_gpu else "cpu"))
    size = weight_bytes(path, config, dtype)
    placement = place(settings, config, size, machine, copy=copy)
    if placement.is_split and settings.lora_adapters:
        raise ConfigError(
            ["LORA_ADAPTERS: not for a model that is split over ranks; set TENSOR_PARALLEL=1"]
        )
    if placement.is_spread and settings.quantize == INT8:
        raise ConfigError([f"QUANTIZE={INT8}: not for a model that is spread over devices"])
    return placement, dtype


def load_weights(
    settings: Settings,
    path: Path,
    config: PretrainedConfig,
    dtype: torch.dtype,
    placement: Placement,
    reader: ImageReader | None = None,
) -> LoadedModel:
    """Load a model, or this rank's share, and check it. Raises ModelLoadError, ConfigError."""
    options = quantizer_options(settings.quantize, config, placement.device)
    if placement.is_spread:
        options |= {
            "device_map": "auto",
            "max_memory": placement.max_memory,
            "offload_folder": tempfile.mkdtemp(prefix="weights-"),
        }
    if placement.is_split:
        options = {"distributed_config": DistributedConfig(tp_size=len(placement.devices))}
    model = load_model(
        path, config, dtype, placement.device, trust_remote_code=settings.trust_remote_code,
        in_int8=settings.quantize == INT8, options=options, reader=reader,
    )  # fmt: skip
    if placement.is_spread:
        placed: dict[str, Any] = getattr(model.module, "hf_device_map")  # noqa: B009
        where = Counter(map(str, placed.values()))
        log.info("parts of the model: %s", ", ".join(f"{n} on {name}" for name, n in where.items()))
    return model


def agreed_capacity(settings: Settings, model: LoadedModel, placement: Placement) -> int:
    """Tokens for which every rank has memory."""
    tokens = capacity(settings, model, sharers=len(placement.devices) * settings.data_parallel)
    return least_over_ranks(tokens) if placement.is_split else tokens


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
    options: dict[str, Any] | None = None,
    reader: ImageReader | None = None,
) -> LoadedModel:
    """Load a language model and find the way to serve it. Raises ModelLoadError or ConfigError.

    With a `reader`, it is a vision-language model. `options` are more that `from_pretrained` takes.
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
            **(options or {}),
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
    if not options:  # a quantized, spread or split one is there already, and may not be moved
        module.to(device)  # type: ignore[arg-type]  # transformers types it for its own decorator
    if options and "distributed_config" in options:
        make_plain(module)
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
    files: ModelFiles,
    model: LoadedModel,
    config: EngineConfig,
    settings: Settings,
    placement: Placement,
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
        quantize=settings.quantize,
        reads_images=model.reads_images,
        tensor_parallel=len(placement.devices),
        data_parallel=settings.data_parallel,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _told(error: BaseException) -> str:
    """An exception in a line; its kind too, since many messages mean little without it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:400]}"
