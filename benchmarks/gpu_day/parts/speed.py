"""Decode and prefill beside the device's limits, PyTorch's plain attention, and transformers.

The model has the Llama-8B shape, with random weights that are made on the device.
"""

import json
import random
import statistics
import sys
import time
from functools import cache, partial
from typing import Any

from benchmarks.gpu_day.plan import Case, Scale
from benchmarks.gpu_day.results import Recorder

PROMPT, STEPS = 128, 48
LONG_PROMPT = 8192
CONTEXT = 512
# Tokens of a prompt whose first token is waited for.
FIRST_TOKEN_PROMPT = 1024
GRAPHS = (2, 4, 8, 16, 32, 64, 128, 256)


def cases(scale: Scale) -> list[Case]:
    """Return the cases."""
    batches = (1, 4) if scale.is_small else (1, 8, 64, 256)
    served = [Case(f"decode at {batch}", partial(decode, scale, batch), 60) for batch in batches]
    made = [
        Case("limits", partial(show_limits, scale.device), 30),
        *served,
        Case("prompt", partial(prefill, scale), 60),
    ]
    if scale.is_small:
        return [*made, Case("plain attention at 4", partial(decode_plainly, scale, 4), 40)]
    made += [
        Case(f"transformers at {batch}", partial(compare, scale, batch), 75) for batch in (64, 256)
    ]
    made += [
        Case(f"plain attention at {batch}", partial(decode_plainly, scale, batch), 40)
        for batch in (1, 64)
    ]
    made += [
        Case(f"decode at {batch}, {name}", partial(decode_without, scale, batch, options), 40)
        for batch in (1, 64)
        for name, options in (("no graphs", {"graphs": ()}), ("no overlap", {"overlaps": False}))
    ]
    return made


@cache
def _limits(device: str) -> tuple[float, float]:
    from benchmarks.gpu import memory_speed, product_speed

    return memory_speed(device), product_speed(device)


@cache
def _loaded(scale: Scale) -> Any:
    """Make and prepare the model, once for all cases of this process."""
    from benchmarks.gpu_day.models import llama_on, prepared, shape_for

    return prepared(llama_on(scale.device, shape_for(scale.device)), scale.device)


@cache
def _engine(scale: Scale, max_running: int, context: int) -> Any:
    from benchmarks.gpu_day.models import make_engine

    graphs = tuple(size for size in GRAPHS if size <= max(2, max_running))
    engine, _ = make_engine(
        _loaded(scale), scale.device, max_running=max_running, context=context, graphs=graphs
    )
    return engine


def show_limits(device: str, recorder: Recorder) -> None:
    """Write the limits that the rest is compared with."""
    memory, products = _limits(device)
    from benchmarks.gpu_day.models import shape_for

    recorder.value("shape", shape_for(device))
    recorder.value("bandwidth", memory / 1e9, "GB/s")
    recorder.value("products", products / 1e12, "TFLOP/s")


def decode(scale: Scale, batch: int, recorder: Recorder) -> None:
    """Time a decode step; at one sequence beside the bytes that it must read."""
    from benchmarks.gpu_day.models import decode_seconds, shape_for
    from benchmarks.models.bench_model import SHAPES

    engine = _engine(scale, 8 if scale.is_small else 256, CONTEXT)
    seconds = decode_seconds(engine, batch, PROMPT, STEPS)
    recorder.value("step", seconds * 1e3, "ms")
    recorder.value("rate", batch / seconds, "tokens/s")
    shape = SHAPES[shape_for(scale.device)]
    read = shape.product_weights * 2 + batch * shape.cache_bytes(PROMPT + STEPS // 2)
    share = read / seconds / _limits(scale.device)[0]
    is_goal = batch == 1 and not scale.is_small
    recorder.value("share of the bandwidth", share, least=0.8 if is_goal else None)


def prefill(scale: Scale, recorder: Recorder) -> None:
    """Time a long prompt beside the speed of products, and the first token of a usual one."""
    from benchmarks.gpu_day.models import greedy, make_engine, shape_for, synchronize
    from benchmarks.models.bench_model import SHAPES, random_prompt

    tokens = 256 if scale.is_small else LONG_PROMPT
    engine, _ = make_engine(_loaded(scale), scale.device, max_running=2, context=tokens + 64)
    shape, numbers = SHAPES[shape_for(scale.device)], random.Random(1)
    for name, count in (("long prompt", tokens), ("first token", min(tokens, FIRST_TOKEN_PROMPT))):
        times = []
        for _ in range(3):
            prompt = random_prompt(numbers, count)
            synchronize()
            started = time.perf_counter()
            greedy(engine, prompt, 1)
            times.append(time.perf_counter() - started)
        seconds = min(times)
        recorder.value(f"{name} of {count} tokens", seconds * 1e3, "ms")
        if name == "long prompt":
            share = shape.prompt_operations(count) / seconds / _limits(scale.device)[1]
            recorder.value("rate", count / seconds, "tokens/s")
            goal = None if scale.is_small else 0.5
            recorder.value("share of the products", share, least=goal)


def decode_plainly(scale: Scale, batch: int, recorder: Recorder) -> None:
    """Time transformers' own decode with scaled_dot_product_attention and a growing cache."""
    import torch
    from transformers import DynamicCache

    from benchmarks.gpu_day.models import free, synchronize

    _free_engines()
    model = _plain_model(scale)
    ids = torch.randint(300, 1000, (batch, PROMPT), device=scale.device)
    times = []
    with torch.inference_mode():
        past = DynamicCache(config=model.config)
        for _ in range(STEPS // 3):
            synchronize()
            started = time.perf_counter()
            logits = model(input_ids=ids, past_key_values=past, logits_to_keep=1).logits
            ids = logits[:, -1:].argmax(-1)
            synchronize()
            times.append(time.perf_counter() - started)
    del past
    free()
    recorder.value("step", statistics.median(times[2:]) * 1e3, "ms")


@cache
def _plain_model(scale: Scale) -> Any:
    from benchmarks.gpu_day.models import llama_on, shape_for

    return llama_on(scale.device, shape_for(scale.device), attention="sdpa")


def compare(scale: Scale, batch: int, recorder: Recorder) -> None:
    """Serve the same prompts as transformers' continuous batching, turn by turn."""
    from benchmarks import gpu
    from benchmarks.gpu_day.models import shape_for
    from benchmarks.peers.environments import TRANSFORMERS
    from benchmarks.system import processes

    blocks = -(-batch * (PROMPT + gpu.NEW_TOKENS) * 5 // 4 // 32)
    settings = {"num_blocks": blocks, "max_requests_per_batch": batch}
    settings |= {"max_batch_tokens": max(2048, batch)}
    shape = f"random:{shape_for(scale.device)}"
    command = [sys.executable, "-m", TRANSFORMERS.module, shape, json.dumps(settings)]
    engine = _engine(scale, 256, CONTEXT)
    with processes.running_peer("transformers", command) as peer:
        [result] = gpu.compare(engine, peer, [batch], 1, PROMPT)
        recorder.value("attention of transformers", peer.facts.get("attention"))
    ours, theirs = (statistics.median(rates) for rates in result["rates"].values())
    recorder.value("ours", ours, "tokens/s")
    recorder.value("transformers", theirs, "tokens/s")
    recorder.value("ratio", ours / theirs, least=1.3)


def decode_without(scale: Scale, batch: int, options: dict[str, Any], recorder: Recorder) -> None:
    """Time a decode step without graphs, or without overlap."""
    from benchmarks.gpu_day.models import decode_seconds, make_engine

    _free_engines()
    settings = {"graphs": (max(2, batch),), "overlaps": True} | options
    engine, _ = make_engine(
        _loaded(scale), scale.device, max_running=batch, context=CONTEXT, **settings
    )
    seconds = decode_seconds(engine, batch, PROMPT, STEPS)
    recorder.value("step", seconds * 1e3, "ms")


def _free_engines() -> None:
    from benchmarks.gpu_day.models import free

    _engine.cache_clear()
    free()
