"""Weights and caches of fewer bits: their layers on this device, with accuracy and speed."""

import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu_day.plan import Case, Scale
from benchmarks.gpu_day.results import Recorder
from benchmarks.gpu_day.supervise import ROOT

BATCHES = (1, 32)
PROMPT = [5, 6, 7, 8]
WEIGHTS = {"num_bits": 4, "group_size": 32}
QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32},
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": WEIGHTS}},
    },
}


def cases(scale: Scale) -> list[Case]:
    """Return the cases."""
    made = [
        Case("bfloat16", partial(measure, scale, {}), 40),
        Case("int8 weights", partial(measure, scale, {"quantize": "int8"}), 40),
        Case("fp8 cache", partial(measure, scale, {"cache_dtype": "float8_e4m3fn"}), 40),
    ]
    made += [Case(f"{name} checkpoint", partial(load, scale, name), 30)
             for name in QUANTIZATIONS]  # fmt: skip
    made += [Case(f"QUANTIZE={name}", partial(ask_for, scale, name), 30)
             for name in ("fp8", "int4")]  # fmt: skip
    return made[1:4] if scale.is_small else made


def measure(scale: Scale, options: dict[str, Any], recorder: Recorder) -> None:
    """Prepare a model with these options, which checks it, and time its steps."""
    import torch

    from benchmarks.gpu_day.models import decode_seconds, free, llama_on, make_engine

    if "cache_dtype" in options:
        options = options | {"cache_dtype": getattr(torch, options["cache_dtype"])}
    shape, batches = ("tiny", (2,)) if scale.is_small else ("1b", BATCHES)
    engine, loaded = make_engine(
        llama_on(scale.device, shape), scale.device, max_running=max(batches), **options
    )
    recorder.value("attention kernels", str(loaded.kernels))
    recorder.value("fallbacks", list(loaded.fallbacks))
    recorder.value("weights", loaded.weight_bytes / 2**30, "GiB")
    for batch in batches:
        recorder.value(f"step at {batch}", decode_seconds(engine, batch, 128, 24) * 1e3, "ms")
    del engine, loaded
    free()


def load(scale: Scale, name: str, recorder: Recorder) -> None:
    """Start an engine of a small checkpoint of four bits; compare it with the weights it means."""
    import torch

    folder = Path(tempfile.mkdtemp()) / name
    model = _write_checkpoint(folder, name)
    with torch.inference_mode():
        whole = model.generate(
            torch.tensor([PROMPT]), max_new_tokens=16, min_new_tokens=16, do_sample=False,
            eos_token_id=None,
        )  # fmt: skip
    _start(scale, folder, recorder, exact=whole[0, len(PROMPT) :].tolist())


def _write_checkpoint(folder: Path, name: str) -> Any:
    """Write a tiny model in four bits, with a tokenizer; return it with the weights it means."""
    import json

    from tests.support.models import packed_checkpoints, tiny_models

    demo = ROOT / "examples" / "demo-model"
    vocabulary = json.loads((demo / "config.json").read_text())["vocab_size"]
    shutil.copytree(demo, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    model = tiny_models.make("qwen2", vocabulary=vocabulary)
    pack = {"awq": packed_checkpoints.awq, "gptq": packed_checkpoints.gptq,
            "compressed-tensors": packed_checkpoints.compressed}[name]  # fmt: skip
    packed_checkpoints.save(model, folder, pack, QUANTIZATIONS[name])
    return model


def ask_for(scale: Scale, name: str, recorder: Recorder) -> None:
    """Start an engine with QUANTIZE; a refusal must name the remedy."""
    from container.errors import ConfigError, ModelLoadError

    folder = ROOT / "examples" / "demo-model"
    try:
        _start(scale, folder, recorder, quantize=name, dtype="auto")
    except (ConfigError, ModelLoadError) as error:
        recorder.value("refused", str(error))


def _start(
    scale: Scale, folder: Path, recorder: Recorder, *, quantize: str | None = None,
    exact: list[int] | None = None, dtype: str = "float32",
) -> None:  # fmt: skip
    from benchmarks.gpu_day.models import greedy
    from container.model.engine_loader import load_engine
    from container.settings.engine import EngineSettings, MemorySettings
    from container.settings.model import ModelSettings
    from container.settings.settings import Settings

    engine, info = load_engine(
        Settings(
            model=ModelSettings(model_id=str(folder), dtype=dtype, quantize=quantize),
            engine=EngineSettings(max_total_tokens=256, max_concurrent_requests=8),
            memory=MemorySettings(max_batch_total_tokens=2048),
        ),
        print,
    )
    recorder.value("quantized as", info.quantize)
    recorder.value("fallbacks", info.fallbacks)
    got = greedy(engine, PROMPT, 16)
    recorder.value("tokens", got)
    if exact is not None:
        assert got == exact, f"{exact} would be right"
