"""Measures forward passes at start: the memory of the largest step, and the time of copies."""

import logging
import statistics
import time
from collections.abc import Callable

import msgspec
import torch

from container.engine.adapters import NO_ADAPTER
from container.engine.schedule import BlockCopy
from container.messages.engine import SamplingParams
from container.model.execution.factory import make_forward
from container.model.forward_batch import ChunkPlan, ForwardPlan
from container.model.kv_cache.cache import BLOCK_SIZE
from container.model.loaded_model import LoadedModel
from container.model.sampling.device import choose_on_device

log = logging.getLogger(__name__)

MEASURED_RUNS = 3


def measure_activations(
    model: LoadedModel, num_tokens: int, num_rows: int, num_sequences: int, context: int
) -> int | None:
    """Measure the peak bytes of a step with `num_tokens` prompt tokens and `num_rows` of logits.

    `num_sequences` of them are sampled. Returns None on a CPU, where torch does not count. All
    ranks must call it.
    """
    if model.device.type != "cuda" or model.layers is None or model.decoder is not None:
        return None
    size = BLOCK_SIZE["cuda"]
    forward = make_forward(model, num_blocks=-(-num_tokens // size), block_size=size)
    torch.cuda.synchronize(model.device)
    before = torch.cuda.memory_allocated(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    with torch.inference_mode():
        logits = forward.run(largest_step(num_tokens, num_rows, block_size=size, context=context))
        params = [SamplingParams(1, temperature=1.0, top_p=0.9)] * min(num_sequences, num_rows)
        choose_on_device(logits[: len(params)], params, [0.5] * len(params))
    del logits
    torch.cuda.synchronize(model.device)
    peak = torch.cuda.max_memory_allocated(model.device) - before
    del forward
    torch.cuda.empty_cache()
    return peak


def largest_step(num_tokens: int, num_rows: int, *, block_size: int, context: int) -> ForwardPlan:
    """Plan one prompt of `num_tokens` tokens, with logits of the last `num_rows`.

    Positions start again at 0 after `context` tokens.
    """
    ids = list(range(num_tokens))
    blocks = list(range(-(-num_tokens // block_size)))
    return ForwardPlan(
        token_ids=[0] * num_tokens,
        positions=[position % context for position in ids],
        slot_mapping=ids,
        logit_rows=ids[-num_rows:],
        groups=[],
        chunks=[ChunkPlan(0, num_tokens, num_tokens, blocks)],
        num_decodes=0,
        adapters=[(NO_ADAPTER, num_tokens)],
        state_slots=[0],
    )


def is_faster_to_copy(
    run: Callable[[ForwardPlan], object], prompt: ForwardPlan, num_slots: int, device: torch.device
) -> bool:
    """Whether restoring a prompt's offloaded blocks is faster than computing the prompt.

    Measures and logs both. With several ranks, `run` must run the plan on all of them.
    """
    (chunk,) = prompt.chunks
    copies = [
        BlockCopy(False, block, index % num_slots) for index, block in enumerate(chunk.block_table)
    ]
    alone, with_copies = (
        _median_seconds(run, msgspec.structs.replace(prompt, copies=block_copies), device)
        for block_copies in ([], copies)
    )
    log.info(
        "KV offload: computing %d tokens takes %.1f ms, restoring them %.1f ms",
        chunk.context_len, alone * 1e3, (with_copies - alone) * 1e3,
    )  # fmt: skip
    return with_copies < 2 * alone


def _median_seconds(
    run: Callable[[ForwardPlan], object], plan: ForwardPlan, device: torch.device
) -> float:
    times = []
    for _ in range(1 + MEASURED_RUNS):
        started = time.perf_counter()
        run(plan)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])  # the first one warms up
