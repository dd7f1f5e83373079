"""A rank worker: a rank above 0, which runs its shard of the forward passes that rank 0 plans."""

import logging
import os
import sys
from pathlib import Path

import torch

from container.ipc.heartbeat import Heartbeat
from container.ipc.parent_watch import watch_parent
from container.model.execution.factory import capture_decodes, make_forward
from container.model.execution.forward_pass import ForwardPass
from container.model.loaded_model import LoadedModel
from container.model.loading.config import read_config
from container.model.loading.cpu_kernels import load_kernels
from container.model.loading.memory_plan import is_only_model, measure_capacity
from container.model.loading.weights import load_weights
from container.model.parallel.placement import Placement
from container.model.parallel.ranks import (
    WATCH_S,
    InitKVCache,
    RankArgs,
    join_group,
    messages,
)
from container.settings.settings import Settings

log = logging.getLogger(__name__)


def run_rank(settings: Settings, order: RankArgs) -> None:
    """Load this rank's shard and run rank 0's messages until rank 0 exits.

    Raises ModelLoadError or ConfigError, as rank 0 does.
    """
    # Rank 0 may die while this rank waits in a collective, so the thread ends the process.
    watch_parent(order.parent_pid, lambda: os._exit(0), WATCH_S)
    heartbeat = Heartbeat(order.heartbeat_fd)
    heartbeat.start()
    # Rank 0 runs and logs the same loading and checks.
    logging.getLogger("container").setLevel(logging.ERROR)
    join_group(order)
    model = _load(settings, order)
    forward: ForwardPass | None = None
    heartbeat.mark(is_ready=True)
    for message in messages(sys.stdin.buffer):
        if isinstance(message, InitKVCache):
            forward = make_forward(
                model, message.num_blocks, message.block_size, num_slots=message.num_slots
            )
            capture_decodes(
                forward, message.capture_sizes, message.max_blocks, model.device, log.debug
            )
        else:
            assert forward is not None, "a plan arrived before InitKVCache"
            forward.run(message)


def _load(settings: Settings, order: RankArgs) -> LoadedModel:
    """Load in the same order as rank 0, since the ranks synchronise in each forward pass."""
    path = Path(order.model_path)
    config = read_config(settings.model, path)
    device = torch.device("cpu") if order.gpu is None else torch.device("cuda", order.gpu)
    placement = Placement((device,) * order.ranks)
    dtype = getattr(torch, order.dtype)
    kernels = load_kernels() if device.type == "cpu" else None
    model = load_weights(
        settings.model,
        path,
        config,
        dtype,
        placement,
        check_ids=order.check_ids,
        cpu_kernels=kernels,
    )
    measure_capacity(
        settings.engine,
        settings.placement,
        model,
        placement,
        has_own_gpu=is_only_model(settings.embedding.embedding_model_id),
    )
    return model
