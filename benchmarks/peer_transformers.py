"""The peer's process: transformers' continuous batching on the same model and the same prompts.

Reads one JSON object a line from stdin, each a round, and answers each with one line; leaves at the
end of stdin. There is no HTTP, no tokenizer and no JSON for each token here, which favours the
peer. Its settings are the fastest that were found; README.md has the list of what was tried.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import IO, Any

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation import ContinuousBatchingConfig
from transformers.generation.continuous_batching import ContinuousBatchingManager

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


def load(folder: Path, *, attention: str, settings: dict[str, Any]) -> ContinuousBatchingManager:
    """Load the model in bfloat16 and start its generation thread."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation=attention
    ).eval()
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=0),
        continuous_batching_config=ContinuousBatchingConfig(**settings),
    )
    manager.warmup()
    manager.start()
    return manager


def run_round(
    manager: ContinuousBatchingManager, prompts: list[list[list[int]]], new_tokens: int
) -> dict[str, Any]:
    """Let each client send its prompts one after another; times are seconds from the start."""
    # A gain for batches; a single query has a faster way of its own.
    os.environ[FORCE_GQA] = "1" if len(prompts) > 1 else "0"
    waiting = [list(reversed(client)) for client in prompts]
    sent_at: dict[str, float] = {}
    client_of: dict[str, int] = {}
    streams = []

    def send(client: int) -> None:
        if not waiting[client]:
            return
        sent = time.perf_counter()
        request_id = manager.add_request(
            waiting[client].pop(), max_new_tokens=new_tokens, record_timestamps=True
        )
        sent_at[request_id], client_of[request_id] = sent, client

    start = time.perf_counter()
    for client in range(len(prompts)):
        send(client)
    while sent_at:
        output = manager.get_result(timeout=STUCK_AFTER_S)
        if output is None or output.error is not None:
            raise RuntimeError(f"no token for {STUCK_AFTER_S} s, or: {output and output.error}")
        client = client_of.pop(output.request_id)
        send(client)
        streams.append(
            {
                "sent_at": sent_at.pop(output.request_id) - start,
                "token_at": [stamp - start for stamp in output.timestamps],
                "prompt_tokens": len(output.prompt_ids),
            }
        )
    return {"streams": streams}


def facts(manager: ContinuousBatchingManager) -> dict[str, Any]:
    """What was measured: versions and the settings as the library resolved them."""
    resolved = manager.continuous_batching_config
    return {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "attention": manager.model.config._attn_implementation,
        "dtype": str(manager.model.dtype).removeprefix("torch."),
        "settings": {name: getattr(resolved, name) for name in SETTINGS},
    }


def serve(folder: Path, answers: IO[str]) -> None:
    """Answer rounds until stdin ends."""
    manager = load(folder, attention=ATTENTION, settings=SETTINGS)
    print(json.dumps(facts(manager)), file=answers, flush=True)
    try:
        for line in sys.stdin:
            print(json.dumps(run_round(manager, **json.loads(line))), file=answers, flush=True)
    finally:
        manager.stop(block=True, timeout=5, hard_stop=True)


def main() -> None:
    """Keep stdout for answers; whatever the library prints goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    transformers.utils.logging.disable_progress_bar()
    serve(Path(sys.argv[1]), answers)


if __name__ == "__main__":
    main()
