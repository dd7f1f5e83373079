"""The loader: from settings to an engine with a model in it, checked before it serves.

The composition root of the engine process; runs once, reports each stage in a line.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import transformers
from huggingface_hub.utils.tqdm import disable_progress_bars as disable_hub_bars
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from container.engine.batch import Batch, Scheduled
from container.engine.loop import Engine, EngineConfig
from container.engine.sequence import Sequence
from container.engine.server import Progress
from container.errors import ConfigError, ModelLoadError
from container.messages import EngineInfo, SamplingParams
from container.model import attention
from container.model.kv_cache import KVCache, LayerShape, bytes_per_token
from container.model.packing import pack
from container.model.runner import TorchModelRunner
from container.model.source import ModelFiles, find_model
from container.settings import Settings
from container.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

BLOCK_SIZE = {"cpu": 32, "cuda": 16}
BATCH_TOKENS = {"cpu": 256, "cuda": 2048}
CACHE_SHARE = 0.5  # of the memory that is free once the weights are loaded
PROBE_IDS = [5, 7, 11, 13, 17, 19, 23, 29]  # any ids will do; below every vocabulary's size


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model whose attention is paged, with what the cache needs to know of it."""

    module: PreTrainedModel
    config: PretrainedConfig
    layers: list[LayerShape]
    dtype: torch.dtype
    device: torch.device


def load_engine(settings: Settings, progress: Progress) -> tuple[Engine, EngineInfo]:
    """Find, load, check and size. Raises ModelLoadError or ConfigError."""
    device = choose_device(settings.num_gpus)
    dtype = choose_dtype(settings.dtype, device)
    progress(f"looking for {settings.model_source()}")
    files = find_model(settings.model_source(), revision=settings.revision, token=settings.hf_token)
    Tokenizer.from_folder(files.path, trust_remote_code=settings.trust_remote_code)
    progress(f"loading weights as {_name(dtype)} on {device.type}")
    model = load_model(files.path, dtype, device, trust_remote_code=settings.trust_remote_code)
    progress("sizing the KV cache")
    config = size_engine(settings, model)
    cache = KVCache(
        model.layers,
        num_blocks=config.num_blocks,
        block_size=config.block_size,
        dtype=dtype,
        device=device,
    )
    ends = end_token_ids(files.path, model.config)
    runner = TorchModelRunner(model.module, cache, device, end_token_ids=ends)
    progress("warming up")
    warm_up(runner, config)
    engine = Engine(runner, config, end_token_ids=ends)
    return engine, _info(files, model, config)


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
    path: Path, dtype: torch.dtype, device: torch.device, *, trust_remote_code: bool = False
) -> LoadedModel:
    """Load a causal language model and plug paged attention into it. Raises ModelLoadError."""
    config = _load_config(path, trust_remote_code)
    try:
        module = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            attn_implementation="eager",  # the reference that paged attention is checked against
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelLoadError(f"{path}: the model cannot be loaded: {_first_line(error)}") from error
    module.to(device)  # type: ignore[arg-type]  # transformers types it for its own decorator
    module.eval()
    return prepare(module, dtype, device)


def prepare(module: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    """Switch a model to paged attention and packed layers, and check it against its own.

    Raises ModelLoadError when the model does not compute the same that way.
    """
    ids = torch.tensor([PROBE_IDS], device=device) % module.config.vocab_size
    with torch.inference_mode():
        expected = module(input_ids=ids, use_cache=False).logits[0].float()
        module.set_attn_implementation(attention.NAME)
        layers = _layer_shapes(module, ids)
        if device.type == "cpu":
            pack(module)
        got = _paged_logits(module, ids, layers, dtype, device)
    _check_same(got, expected, module.config.model_type, dtype)
    return LoadedModel(module, module.config, layers, dtype, device)


def size_engine(settings: Settings, model: LoadedModel) -> EngineConfig:
    """Decide the cache's size and the limits. Raises ConfigError when a limit cannot be kept."""
    kind = model.device.type
    block_size = BLOCK_SIZE[kind]
    context = int(getattr(model.config, "max_position_embeddings", 0) or 2**20)
    if settings.max_total_tokens and settings.max_total_tokens > context:
        raise ConfigError(
            [f"MAX_TOTAL_TOKENS={settings.max_total_tokens}, but the model's context is {context}"]
        )
    wanted = settings.max_total_tokens or context
    per_token = bytes_per_token(model.layers, model.dtype)
    capacity = settings.max_batch_total_tokens
    if capacity is None:
        fits = int(_free_bytes(model.device) * CACHE_SHARE) // per_token
        capacity = min(fits, settings.max_batch_size * wanted)
    num_blocks = capacity // block_size
    longest = min(wanted, num_blocks * block_size)
    if settings.max_total_tokens and longest < settings.max_total_tokens:
        raise ConfigError(
            [
                f"MAX_TOTAL_TOKENS={settings.max_total_tokens}, but the KV cache holds {longest} "
                f"tokens of {per_token} bytes each"
            ]
        )
    longest_input = settings.max_input_tokens or longest - 1
    if longest < 2 or longest_input >= longest:
        raise ConfigError([f"MAX_INPUT_TOKENS={longest_input} must be less than {longest}"])
    log.info(
        "KV cache: %d blocks of %d tokens, %d tokens, up to %.2f GiB; a sequence may have %d",
        num_blocks, block_size, num_blocks * block_size,
        num_blocks * block_size * per_token / 2**30, longest,
    )  # fmt: skip
    return EngineConfig(
        block_size=block_size,
        num_blocks=num_blocks,
        max_batch_tokens=settings.max_batch_prefill_tokens or BATCH_TOKENS[kind],
        max_running=settings.max_batch_size,
        max_input_tokens=longest_input,
        max_total_tokens=longest,
        max_requests=settings.max_concurrent_requests,
    )


def end_token_ids(path: Path, config: PretrainedConfig) -> frozenset[int]:
    """Ids that end a completion: generation_config.json's, else config.json's."""
    found = config.eos_token_id
    if (path / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(path)
        found = generation.eos_token_id if generation.eos_token_id is not None else found
    if found is None:
        log.warning("the model names no end token; only length and stop strings end a completion")
        return frozenset()
    return frozenset(found if isinstance(found, list) else [found])


def warm_up(runner: TorchModelRunner, config: EngineConfig) -> None:
    """Run a prompt and a few single tokens, so that the first request finds all things made."""
    prompt_len = min(8, config.max_input_tokens)
    sequence = Sequence(0, [0] * prompt_len, SamplingParams(max_new_tokens=1))
    sequence.block_table = list(range(-(-prompt_len // config.block_size)))
    runner.execute(Batch((Scheduled(sequence, prompt_len),)))
    sequence.num_computed = prompt_len - 1
    runner.execute(Batch((Scheduled(sequence, 1),)))


def _load_config(path: Path, trust_remote_code: bool) -> PretrainedConfig:
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, OSError) as error:
        hint = (
            "; set HF_MODEL_TRUST_REMOTE_CODE=true if you trust the model's own code"
            if "trust_remote_code" in str(error)
            else f" (transformers {transformers.__version__})"
        )
        raise ModelLoadError(
            f"{path}/config.json cannot be used: {_first_line(error)}{hint}"
        ) from error
    is_encoder = (
        getattr(config, "is_decoder", None) is False
        and config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )
    is_own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    is_known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not is_encoder
    if not is_known and not is_own_code:
        raise ModelLoadError(
            f"{path}: a {config.model_type} model does not generate text "
            "(it is not a causal language model)"
        )
    return config


def _layer_shapes(module: PreTrainedModel, ids: torch.Tensor) -> list[LayerShape]:
    """Ask the model itself: run it once with an attention that only takes notes."""
    shapes: dict[int, LayerShape] = {}

    def note(layer_module, query, key, value, *_args, **_kwargs):  # type: ignore[no-untyped-def]
        shapes[layer_module.layer_idx] = LayerShape(key.shape[1], key.shape[-1], value.shape[-1])
        out = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1])
        return out, None

    ALL_ATTENTION_FUNCTIONS.register(attention.NAME, note)
    try:
        module(input_ids=ids, use_cache=False)
    finally:
        ALL_ATTENTION_FUNCTIONS.register(attention.NAME, attention.paged_attention)
    if sorted(shapes) != list(range(module.config.num_hidden_layers)):
        raise ModelLoadError(
            f"{module.config.model_type} models compute attention in their own way, which this "
            "version does not serve (no layer uses transformers' attention interface)"
        )
    return [shapes[layer] for layer in sorted(shapes)]


def _paged_logits(
    module: PreTrainedModel,
    ids: torch.Tensor,
    layers: list[LayerShape],
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """Logits of the probe, its first half as one chunk and the rest token by token."""
    count = ids.shape[1]
    cache = KVCache(layers, num_blocks=count, block_size=2, dtype=dtype, device=device)
    runner = TorchModelRunner(module, cache, device)
    sequence = Sequence(0, ids[0].tolist(), SamplingParams(max_new_tokens=1))
    sequence.block_table = list(range(count))
    rows = []
    for num_tokens in [count // 2] + [1] * (count - count // 2):
        item = Scheduled(sequence, num_tokens)
        rows.append(runner.logits([item], [item], [])[0])
        sequence.num_computed += num_tokens
    return torch.stack(rows)


def _check_same(
    got: torch.Tensor, expected: torch.Tensor, model_type: str, dtype: torch.dtype
) -> None:
    expected = expected[expected.shape[0] // 2 - 1 :]
    scale = expected.abs().max().item()
    error = (got - expected).abs().max().item() / max(scale, 1e-6)
    limit = 1e-3 if dtype == torch.float32 else 0.1
    log.info("paged attention checked against the model's own: off by %.2g of the scale", error)
    if not error <= limit:
        raise ModelLoadError(
            f"{model_type}: paged attention differs from the model's own by {error:.2g} "
            f"(limit {limit}); this version does not serve it"
        )


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(psutil.virtual_memory().available, _cgroup_free_bytes())


def _cgroup_free_bytes() -> int:
    """What a container's memory limit leaves; no limit is a very large number."""
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text().strip()
        current = int((root / "memory.current").read_text())
    except (OSError, ValueError):
        return 2**62
    return max(0, int(limit) - current) if limit.isdigit() else 2**62


def _info(files: ModelFiles, model: LoadedModel, config: EngineConfig) -> EngineInfo:
    return EngineInfo(
        model_id=files.model_id,
        model_path=os.fspath(files.path),
        model_sha=files.sha,
        model_type=model.config.model_type,
        dtype=_name(model.dtype),
        device=model.device.type,
        vocabulary=model.config.vocab_size,
        max_input_tokens=config.max_input_tokens,
        max_total_tokens=config.max_total_tokens,
        cache_tokens=config.num_blocks * config.block_size,
        max_batch_tokens=config.max_batch_tokens,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:400]
