"""Engines with tiny torch models; `engines` drives them."""

import dataclasses
from functools import cache

import torch

from container.engine.config import EngineConfig
from container.engine.engine import Engine
from container.engine.structured_output import Grammars
from container.model.execution.cuda_graphs import capture_nothing, graph_capturer
from container.model.execution.factory import make_runner
from container.model.execution.model_runner import TorchModelRunner
from container.model.loaded_model import LoadedModel
from container.model.lora.layers import LoraLayers
from container.model.lora.manager import LoraManager
from container.model.states.pieces import SEGMENT
from tests.support.engines import engine_config
from tests.support.models import tiny_models
from tests.support.models.prepared import prepare


def config_for(loaded: LoadedModel, **overrides: int) -> EngineConfig:
    """A configuration with state slots and snapshots if the model is recurrent."""
    sizes: dict[str, int] = {}
    if loaded.mixers is not None:
        sizes = {"num_snapshots": 8, "chunk_multiple": SEGMENT}
        sizes["num_state_slots"] = overrides.get("max_running", 8)
    return engine_config(**sizes | overrides)


def torch_engine(
    name: str,
    dtype: torch.dtype = torch.float32,
    *,
    end_token_ids: tuple[int, ...] = (),
    max_adapters: int = 8,
    overlaps: bool = False,
    recorded: tuple[int, ...] = (),
    grammars: Grammars | None = None,
    shares_model: bool = False,
    device: str = "cpu",
    **sizes: int,
) -> Engine:
    """An engine with a tiny model prepared as the server prepares it.

    `overlaps` and `recorded`, which are for GPUs, work on a CPU without the gain. `shares_model`:
    the prepared model is that of earlier engines, for tests that leave it as it is.
    """
    where = torch.device(device)
    loaded = (_shared_model if shares_model else _prepared_model)(name, dtype, where)
    config = dataclasses.replace(
        config_for(loaded, **sizes),
        reuses_prefixes=loaded.attention == "paged",
        scores_prompts=not loaded.has_encoder,
        decoder_start=() if loaded.decoder is None else loaded.decoder.start,
    )
    lora_layers = LoraLayers(loaded.module, dtype, where)
    runner = make_runner(
        loaded,
        config,
        end_token_ids=frozenset(end_token_ids),
        lora_layers=lora_layers,
        overlaps=overlaps,
    )
    if recorded:
        assert isinstance(runner, TorchModelRunner)
        max_blocks = -(-config.max_total_tokens // config.block_size)
        capture = capture_nothing if where.type == "cpu" else graph_capturer()
        runner.forward.capture(list(recorded), max_blocks, capture, lambda _: None)
        assert runner.forward.has_graphs
    store = LoraManager(lora_layers, max_adapters)
    return Engine(runner, config, end_token_ids=end_token_ids, adapters=store, grammars=grammars)


def adapters_of(engine: Engine) -> LoraManager:
    """Return the adapters of an engine with a torch model."""
    assert isinstance(engine.adapters, LoraManager)
    return engine.adapters


def _prepared_model(name: str, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    options = {} if device.type == "cpu" else {"cpu_kernels": None}
    return prepare(tiny_models.make(name, dtype).to(device), dtype, device, **options)  # type: ignore[arg-type]


_shared_model = cache(_prepared_model)
