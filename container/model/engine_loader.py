"""Loads an engine with its model from settings, and checks the model before it serves.

The composition root of the engine process; runs once and reports each stage in one line.
"""

import logging
import os
from dataclasses import replace
from pathlib import Path

import msgspec
import torch

from container.engine.config import EngineConfig
from container.engine.engine import Engine
from container.engine.model_runner import ModelRunner, run_step
from container.engine.schedule import Batch, ScheduledSequence
from container.grammar.protocol import GrammarLimits
from container.ipc.backend_server import Progress
from container.messages.engine import EngineInfo, SamplingParams
from container.model.engine_texts import checked_grammars, load_texts, start_grammars
from container.model.execution.factory import (
    capture_decodes,
    capture_obstacle,
    capture_sizes,
    make_runner,
)
from container.model.execution.model_runner import TorchModelRunner
from container.model.execution.step_measurement import is_faster_to_copy, largest_step
from container.model.fallbacks import Fallbacks
from container.model.formats.checkpoint import method_name
from container.model.kernels.processor import processor_name
from container.model.loaded_model import LoadedModel
from container.model.loading.checkpoint import ModelFiles, copy_text_files, find_model
from container.model.loading.config import (
    dtype_name,
    read_config,
)
from container.model.loading.cpu_kernels import load_kernels
from container.model.loading.engine_limits import find_slots, size_engine
from container.model.loading.memory_plan import is_only_model, measure_capacity
from container.model.loading.weights import load_weights, plan_load
from container.model.lora.layers import LoraLayers
from container.model.lora.manager import open_store
from container.model.parallel.placement import Placement
from container.model.parallel.ranks import InitKVCache, Ranks
from container.model.progress_bars import followed_loading
from container.model.torch_versions import empty_host_cache
from container.settings.settings import Settings
from container.text.templates.renderer import TemplateRenderer

log = logging.getLogger(__name__)


def load_engine(
    settings: Settings,
    progress: Progress,
    replica: int = 0,
    text_folder: Path | None = None,
    renderer: TemplateRenderer | None = None,
) -> tuple[Engine, EngineInfo]:
    """Find, load, check and size the model of replica number `replica`.

    Frontends read its text files from a copy in `text_folder`, or else from the model's folder.
    `renderer` is a renderer of chat templates that was started earlier.
    Raises ModelLoadError or ConfigError.
    """
    progress(f"looking for {settings.model.model_source()}")
    files = find_model(
        settings.model.model_source(),
        revision=settings.model.revision,
        token=settings.model.hf_token,
        reads_gguf=True,
        progress=progress,
    )
    text_path = files.path if text_folder is None else copy_text_files(files, text_folder)
    model_config = read_config(settings.model, files.path)
    fallbacks = Fallbacks()
    placement, dtype = plan_load(
        settings.model, settings.placement, model_config, files.path, replica, fallbacks
    )
    if placement.device.type == "cuda":
        torch.cuda.set_device(placement.device)
    texts = load_texts(settings.model, files.path, model_config, renderer)
    kernels = load_kernels(fallbacks) if placement.device.type == "cpu" else None
    ranks = None
    if placement.is_tensor_parallel:
        ranks = Ranks(
            files.path, dtype_name(dtype), placement.devices, texts.check_ids,
            silence_s=settings.server.heartbeat_timeout_s,
        )  # fmt: skip
    limits = GrammarLimits(
        settings.requests.grammar_timeout, settings.requests.grammar_memory * 2**20
    )
    grammars = start_grammars(texts, limits)
    stage = f"loading weights as {dtype_name(dtype)} on {placement}"
    progress(stage)
    with followed_loading(progress, stage):
        model = load_weights(
            settings.model, files.path, model_config, dtype, placement, texts.reader,
            texts.check_ids, kernels, progress,
        )  # fmt: skip
    fallbacks.extend(model.fallbacks)
    progress("sizing the KV cache")
    config = _size(settings, model, placement)
    sizes = capture_sizes(settings.engine.cuda_graphs, model, config.max_running)
    max_blocks = -(-config.max_total_tokens // config.block_size)
    if ranks is not None:
        ranks.broadcast(
            InitKVCache(config.num_blocks, config.block_size, sizes, max_blocks, config.num_slots)
        )
    lora_layers = _lora_layers(model, placement)
    overlaps = settings.engine.overlap_steps
    runner = make_runner(
        model,
        config,
        end_token_ids=texts.end_ids,
        lora_layers=lora_layers,
        broadcast=ranks.broadcast if ranks else None,
        overlaps=overlaps if overlaps is not None else model.device.type == "cuda",
    )
    obstacle = capture_obstacle(settings.engine.cuda_graphs, model)
    if isinstance(runner, TorchModelRunner):
        obstacle = obstacle or capture_decodes(
            runner.forward, sizes, max_blocks, model.device, progress
        )
        if settings.memory.swap_space is None:
            config = _without_slow_offload(runner, config)
        if config.num_slots:
            tokens_on_host = config.num_slots * config.block_size
            log.info("KV offload: host memory holds %d tokens", tokens_on_host)
    if obstacle is not None:
        fallbacks.add(
            "CUDA graphs", f"decodes run eagerly, since {obstacle}",
            "set CUDA_GRAPHS to batch sizes to choose them, or to 0 to accept this",
        )  # fmt: skip
    if settings.engine.require_fast_path:
        fallbacks.refuse()
    progress("warming up")
    warm_up(runner, config)
    engine = Engine(
        runner,
        config,
        end_token_ids=texts.end_ids,
        grammars=checked_grammars(grammars),
        adapters=open_store(settings.model, lora_layers, progress)
        if lora_layers is not None
        else None,
    )
    info = _info(
        files,
        text_path,
        model,
        config,
        placement,
        quantize=settings.model.quantize or method_name(files.path, model_config),
        data_parallel=settings.placement.data_parallel,
    )
    return engine, msgspec.structs.replace(info, fallbacks=[*fallbacks.lines])


def _size(settings: Settings, model: LoadedModel, placement: Placement) -> EngineConfig:
    """Measure the memory that the loaded model leaves, and size the engine for it."""
    capacity = measure_capacity(
        settings.engine,
        settings.placement,
        model,
        placement,
        has_own_gpu=is_only_model(settings.embedding.embedding_model_id),
    )
    num_processes = len(placement.devices) * settings.placement.data_parallel
    return replace(
        size_engine(settings.engine, settings.memory, model, capacity),
        num_slots=find_slots(settings.memory, model, num_processes),
        max_batch_requests=settings.max_batch_requests,
    )


def _lora_layers(model: LoadedModel, placement: Placement) -> LoraLayers | None:
    """Add the layers of adapters, which need the whole model on one device."""
    is_split = placement.is_tensor_parallel or placement.uses_device_map
    if is_split or model.decoder is not None:
        return None
    return LoraLayers(model.module, model.dtype, model.device)


def _without_slow_offload(runner: TorchModelRunner, config: EngineConfig) -> EngineConfig:
    """Measure whether restoring an offloaded prefix is faster than computing it again.

    If not, free the host memory of the slots and return the config without them.
    """
    if not config.num_slots:
        return config
    size, forward = config.block_size, runner.forward
    num_tokens = min(config.max_batch_tokens, config.max_total_tokens) // size * size
    if num_tokens:
        prompt = largest_step(num_tokens, 1, block_size=size, context=num_tokens)
        device = forward.cache.keys[0].device
        if is_faster_to_copy(runner.run_plan, prompt, config.num_slots, device):
            return config
    forward.host = None
    if torch.cuda.is_available():
        empty_host_cache()
    return replace(config, num_slots=0)


def warm_up(runner: ModelRunner, config: EngineConfig) -> None:
    """Run a prefill and a decode, so that the first request pays for no initialisation."""
    prompt_len = min(8, config.max_input_tokens)
    params = SamplingParams(max_new_tokens=1)
    sequence = config.make_sequence(0, [0] * prompt_len, params)
    sequence.num_computed = sequence.encoder.begin(0)
    num_tokens = sequence.prompt_len + 1
    sequence.block_table = list(range(-(-num_tokens // config.block_size)))
    sequence.state_slot = 0 if config.num_state_slots else None
    run_step(runner, Batch((ScheduledSequence.of(sequence, sequence.num_to_compute),)))
    sequence.token_ids.append(0)
    sequence.num_computed = sequence.prompt_len
    run_step(runner, Batch((ScheduledSequence.of(sequence, 1),)))


def _info(
    files: ModelFiles,
    text_path: Path,
    model: LoadedModel,
    config: EngineConfig,
    placement: Placement,
    *,
    quantize: str | None,
    data_parallel: int,
) -> EngineInfo:
    return EngineInfo(
        model_id=files.model_id,
        model_path=os.fspath(text_path),
        model_sha=files.sha,
        model_type=model.config.model_type,
        dtype=dtype_name(model.dtype),
        device=model.device.type,
        vocabulary=model.text_config.vocab_size,
        max_input_tokens=config.max_input_tokens,
        max_total_tokens=config.max_total_tokens,
        cache_tokens=config.num_blocks * config.block_size,
        max_batch_tokens=config.max_batch_tokens,
        attention=model.attention,
        quantize=quantize,
        is_multimodal=model.is_multimodal,
        tensor_parallel=len(placement.devices),
        data_parallel=data_parallel,
        reuses_prefixes=config.reuses_prefixes,
        max_requests=config.max_requests,
        state_slots=config.num_state_slots,
        cpu=_cpu(model),
        not_proved=[*model.not_proved],
    )


def _cpu(model: LoadedModel) -> str | None:
    """Name what the layers use of this processor; None on another device."""
    if model.device.type != "cpu":
        return None
    return processor_name() if model.cpu_kernels is None else model.cpu_kernels.name
