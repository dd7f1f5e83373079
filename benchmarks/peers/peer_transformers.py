"""The peer's process: transformers' continuous batching on the same model and the same prompts.

peer_transformers.py MODEL [SETTINGS [DTYPE]]: SETTINGS is JSON, DTYPE bfloat16 unless it is named.
MODEL is a folder, or random: and a shape of bench_model.py.

There is no HTTP, no tokenizer and no JSON for each token here, which favours the
peer. Its settings are the fastest; README.md lists the alternatives that were tried.
"""

import atexit
import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation import ContinuousBatchingConfig  # type: ignore[attr-defined]
from transformers.generation.continuous_batching import ContinuousBatchingManager

from benchmarks.peers.peer_loop import Clients, Prompts, Request, answer_rounds

ATTENTION = "sdpa"
SETTINGS: dict[str, Any] = {
    "page_size": 32,
    # Room for 8,192 tokens: 32 clients of 192 tokens leave a quarter free, so nobody waits for it.
    "num_blocks": 256,
    "max_batch_tokens": 256,
    "max_requests_per_batch": 64,
    "scheduler_type": "fifo",
    # No two prompts share a prefix; looking for one would only cost time.
    "allow_block_sharing": False,
    "use_async_batching": False,
    "default_compile_level": 0,
    # There is no flash attention for a CPU.
    "auto_switch_to_flash": False,
}
# Read by transformers at each call: attend to grouped heads without copying keys and values.
FORCE_GQA = "TRANSFORMERS_SDPA_FORCE_GQA"
STUCK_AFTER_S = 300.0
# Of a model that is made and not read.
RANDOM = "random:"


def for_this_device(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of a GPU are the library's own, but for what the benchmark sets."""
    asked = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    return asked if torch.cuda.is_available() else settings | asked


def load(
    folder: Path, *, attention: str, settings: dict[str, Any], dtype: str = "bfloat16"
) -> ContinuousBatchingManager:
    """Load the model and start its generation thread."""
    if folder.name.startswith(RANDOM):
        model = _random_model(folder.name.removeprefix(RANDOM), attention)
    else:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation=attention
        ).eval()
    if torch.cuda.is_available():
        model = model.cuda()
    manager = model.init_continuous_batching(
        # No token has the id -1: completions have the length that is asked for.
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
        continuous_batching_config=ContinuousBatchingConfig(**settings),
    )
    manager.warmup()
    manager.start()
    return manager


def _random_model(shape: str, attention: str) -> Any:
    """Make a model of a benchmark's shape on the GPU, since reading a large one takes minutes."""
    from benchmarks.gpu_day.models import llama_on

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return llama_on(device, shape, attention)


def run_round(
    manager: ContinuousBatchingManager, prompts: Prompts, new_tokens: int
) -> dict[str, Any]:
    """Let each client send its prompts one after another; times are the library's own stamps."""
    # A gain for batches; a single query has a faster way of its own.
    os.environ[FORCE_GQA] = "1" if len(prompts) > 1 else "0"
    clients = Clients(prompts, new_tokens)
    start = time.perf_counter() - clients.now
    running: dict[str, Request] = {}

    def send(request: Request | None) -> None:
        if request is not None:
            request_id = manager.add_request(
                request.prompt, max_new_tokens=new_tokens, record_timestamps=True
            )
            running[request_id] = request

    for request in clients.first():
        send(request)
    while running:
        output = manager.get_result(timeout=STUCK_AFTER_S)
        if output is None or output.error is not None:
            raise RuntimeError(f"no token for {STUCK_AFTER_S} s, or: {output and output.error}")
        request = running.pop(output.request_id)
        for stamp in output.timestamps:
            clients.got(request, 1, stamp - start)
        send(clients.done(request))
    return clients.result()


def facts(manager: ContinuousBatchingManager) -> dict[str, Any]:
    """Return the versions, and the settings as the library resolved them."""
    resolved = manager.continuous_batching_config
    return {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "attention": manager.model.config._attn_implementation,
        "dtype": str(manager.model.dtype).removeprefix("torch."),
        "settings": {name: getattr(resolved, name) for name in SETTINGS},
    }


def start() -> tuple[dict[str, Any], Any]:
    """Load; tell versions and settings."""
    transformers.utils.logging.disable_progress_bar()
    dtype = sys.argv[3] if len(sys.argv) > 3 else "bfloat16"
    settings = for_this_device(SETTINGS)
    manager = load(Path(sys.argv[1]), attention=ATTENTION, settings=settings, dtype=dtype)
    # Its thread would keep the process from leaving at the end of stdin.
    atexit.register(manager.stop, block=True, timeout=5, hard_stop=True)
    return facts(manager), functools.partial(run_round, manager)


if __name__ == "__main__":
    answer_rounds(start)
