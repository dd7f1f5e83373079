"""Decode speed of the engine alone: 8 sequences on the base model, and on 4 adapters in one batch.

Adapters have random weights (speed does not depend on them), rank 16 on every layer. The fastest of
several runs counts, base and adapters in turn, since a shared machine only ever makes a run slower.
"""

import json
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.models.bench_model import default_folder, is_written, make_model
from container.engine.engine import Engine
from container.messages.engine import SamplingParams, Submit
from container.model.engine_loader import load_engine
from container.model.lora.manager import LoraManager
from container.settings.engine import EngineSettings
from container.settings.model import ModelSettings
from container.settings.settings import Settings

NUM_ADAPTERS, RANK, CLIENTS, NEW_TOKENS, ROUNDS = 4, 16, 8, 48, 3


def write_adapter(folder: Path, shapes: dict[str, tuple[int, int]]) -> Path:
    """Write an adapter of random numbers in peft's form."""
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    tensors = {}
    for name, (inputs, outputs) in shapes.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(RANK, inputs) * 0.01
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(outputs, RANK) * 0.01
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def run(engine: Engine, names: list[str]) -> float:
    """Decode with these adapters side by side; tokens each second."""
    for client in range(CLIENTS):
        params = SamplingParams(NEW_TOKENS, ignore_eos=True)
        adapter = names[client % len(names)]
        engine.submit(b"", Submit(client, [300 + client] * 16, params, adapter=adapter))
    engine.step()
    started, count = time.perf_counter(), 0
    while engine.has_work:
        count += len(engine.step())
    return count / (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    folder = default_folder()
    if not is_written(folder):
        make_model(folder)
    engine, _ = load_engine(
        Settings(
            model=ModelSettings(model_id=str(folder)), engine=EngineSettings(max_total_tokens=256)
        ),
        print,
    )
    store = engine.adapters
    assert isinstance(store, LoraManager)
    shapes = store.lora_layers.shapes
    with tempfile.TemporaryDirectory() as root:
        names = [f"adapter-{number}" for number in range(NUM_ADAPTERS)]
        base, mixed = [], []
        for name in names:
            store.add(name, str(write_adapter(Path(root) / name, shapes)), preload=True, pin=False)
        for _ in range(ROUNDS):
            base.append(run(engine, [""]))
            mixed.append(run(engine, names))
    print(f"base: {max(base):.0f} tokens/s; {NUM_ADAPTERS} adapters: {max(mixed):.0f} tokens/s; "
          f"share {max(mixed) / max(base):.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
