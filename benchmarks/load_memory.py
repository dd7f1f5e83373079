"""Measures how much memory loading takes: a checkpoint of 1 GiB, the peak of one process.

.venv/bin/python -m benchmarks.load_memory: writes a random Llama shape of 1 GiB in bfloat16, loads
it as the server does, with a small KV cache, and prints the peak. The bar is 1.5 times the weights,
the cache, and 1 GiB for Python and torch.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.models import bench_model

GIB = 2**30


def write(folder: Path) -> None:
    """Write model and tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=1536,
        num_hidden_layers=18,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=128,
        intermediate_size=4096,
        vocab_size=bench_model.VOCABULARY,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    bench_model.write_tokenizer(folder)


def load(folder: Path) -> None:
    """Load as the server does; print sizes and the peak."""
    from container.model.engine_loader import load_engine
    from container.model.progress_bars import disable_progress_bars
    from container.settings.engine import MemorySettings
    from container.settings.model import ModelSettings
    from container.settings.settings import Settings

    disable_progress_bars()
    settings = Settings(
        model=ModelSettings(model_id=str(folder), dtype="bfloat16"),
        memory=MemorySettings(max_batch_total_tokens=4096),
    )
    start = time.perf_counter()
    load_engine(settings, progress=lambda _: None)
    took = time.perf_counter() - start
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    print(
        f"weights {weights:.2f} GiB, peak {peak:.2f} GiB (bar without the cache: "
        f"{1.5 * weights + 1:.2f}), loaded in {took:.1f} s"
    )


def main() -> None:
    """Run both halves in separate processes, so that the peak is that of loading."""
    if len(sys.argv) > 1:
        {"write": write, "load": load}[sys.argv[1]](Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as folder:
        for half in ("write", "load"):
            subprocess.run(
                [sys.executable, "-m", "benchmarks.load_memory", half, folder], check=True
            )


if __name__ == "__main__":
    main()
