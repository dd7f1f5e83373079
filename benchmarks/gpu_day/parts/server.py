"""The whole server: the demo model with each kind of request, a killed engine, and a 0.5B shape.

The cases of one model share a server, which the first of them in this process starts.
"""

import concurrent.futures
import json
import os
import random
import signal
import statistics
import tempfile
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.gpu_day.plan import Case, Scale
from benchmarks.gpu_day.results import Recorder
from benchmarks.gpu_day.serving import Server, gpu_memory_gib
from benchmarks.gpu_day.supervise import ROOT

DEMO = ROOT / "examples" / "demo-model"
READY_S = 70.0
CHAT = {"messages": [{"role": "user", "content": "Name three colours."}], "temperature": 0}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "count": {"type": "integer"}},
    "required": ["name", "count"],
}
CLIENTS = 32


def cases(scale: Scale) -> list[Case]:
    """Return the cases."""
    made = [
        Case("start", partial(start, scale.device), READY_S + 15),
        Case("chat", chat, 30),
        Case("stream", stream, 30),
        Case("grammar", grammar, 40),
        Case("LoRA", lora, 40),
    ]
    if not scale.is_small:
        made += [
            Case("killed engine", kill_engine, READY_S),
            Case("memory of a 0.5B shape", start_larger, READY_S + 25),
            Case("streams of a 0.5B shape", streams, 40),
        ]
    return [*made, Case("drain", drain, 45)]


@cache
def demo() -> Server:
    """Start the demo model with an adapter."""
    adapter = _make_adapter(Path(tempfile.mkdtemp()) / "adapter")
    server = Server(DEMO, LORA_ADAPTERS=f"loud={adapter}", DTYPE="float32")
    server.wait_ready(READY_S)
    return server


@cache
def larger() -> Server:
    """Start a model of half a billion random weights."""
    server = Server(_larger_folder(), DTYPE="bfloat16", MAX_BATCH_SIZE="64")
    server.wait_ready(READY_S)
    return server


@cache
def _larger_folder() -> Path:
    from benchmarks.gpu_day.models import free, llama_on
    from benchmarks.models.bench_model import write_tokenizer

    folder = Path(tempfile.mkdtemp()) / "half-billion"
    llama_on("cuda", "0.5b").save_pretrained(folder)
    write_tokenizer(folder, 8192)
    free()
    return folder


def start(device: str, recorder: Recorder) -> None:
    """Start it; write the memory plan beside what the driver shows."""
    server = demo()
    recorder.value("ready after", time.monotonic() - server.started_at, "s")
    info = server.get("/info")
    for name in ("model_device_type", "attention", "fallbacks"):
        recorder.value(name, info.get(name))
    _show_warnings(server, recorder)
    assert info["model_device_type"] == device, f"served on {info['model_device_type']}"


def chat(recorder: Recorder) -> None:
    """Answer the same chat twice, greedily."""
    answers = [_text(demo().post("/v1/chat/completions", CHAT | {"max_tokens": 24})) for _ in "ab"]
    recorder.value("answer", answers[0])
    assert answers[0] == answers[1], answers


def stream(recorder: Recorder) -> None:
    """Stream it; the pieces make up the whole answer."""
    body = CHAT | {"max_tokens": 24}
    started, first, text = time.perf_counter(), None, ""
    for event in demo().stream("/v1/chat/completions", body):
        for choice in event["choices"]:
            text += choice["delta"].get("content") or ""
            if text and first is None:
                first = time.perf_counter() - started
    recorder.value("time to first token", (first or 0) * 1e3, "ms")
    assert text == _text(demo().post("/v1/chat/completions", body)), text


def grammar(recorder: Recorder) -> None:
    """Answer as a JSON Schema wants it."""
    format_ = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}
    body = CHAT | {"max_tokens": 200, "response_format": format_}
    text = _text(demo().post("/v1/chat/completions", body))
    recorder.value("answer", text)
    assert set(json.loads(text)) == {"name", "count"}, text


def lora(recorder: Recorder) -> None:
    """Answer with an adapter, alone and beside the base model."""
    body = CHAT | {"max_tokens": 24}
    base = _text(demo().post("/v1/chat/completions", body))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        bodies = [body, body | {"model": "loud"}] * 4
        texts = [_text(answer) for answer in pool.map(_ask, bodies)]
    recorder.value("with the adapter", texts[1])
    assert set(texts[::2]) == {base}, "the base model's answers change beside an adapter's"
    assert len(set(texts[1::2])) == 1, "an adapter's answers differ"
    assert texts[1] != base, "the adapter changes nothing"


def kill_engine(recorder: Recorder) -> None:
    """Kill the engine's process; the server must serve again, and answer as before."""
    import psutil

    body = CHAT | {"max_tokens": 24}
    before = _text(demo().post("/v1/chat/completions", body))
    children = psutil.Process(demo().process.pid).children()
    engine = next(child for child in children if "engine" in child.cmdline())
    os.kill(engine.pid, signal.SIGKILL)
    started = time.monotonic()
    time.sleep(1)
    demo().wait_ready(READY_S - 10)
    recorder.value("ready again after", time.monotonic() - started, "s")
    after = _text(demo().post("/v1/chat/completions", body))
    assert after == before, f"{after!r} instead of {before!r}"


def start_larger(recorder: Recorder) -> None:
    """Start it alone on the GPU; compare its memory table with what the driver shows."""
    _stop_demo()
    _larger_folder()
    before = gpu_memory_gib()
    server = larger()
    recorder.value("ready after", time.monotonic() - server.started_at, "s")
    table = server.memory_table()
    for name, size in table.items():
        recorder.value(name, size, "GiB")
    used = gpu_memory_gib()
    if used is not None and before is not None:
        recorder.value("GPU memory in use", used - before, "GiB")
        planned = sum(table.values())
        recorder.value("share of it that the table explains", planned / (used - before),
                       least=0.9, most=1.1)  # fmt: skip
    _show_warnings(server, recorder)


def streams(recorder: Recorder) -> None:
    """Stream to several clients at once; write tokens a second and times to the first token."""
    from benchmarks.models.bench_model import as_text, random_prompt

    numbers = random.Random(0)
    prompts = [as_text(random_prompt(numbers, 128)) for _ in range(CLIENTS)]
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(_time_stream, prompts))  # warms up
        started = time.perf_counter()
        firsts = list(pool.map(_time_stream, prompts))
    seconds = time.perf_counter() - started
    recorder.value(f"{CLIENTS} clients", CLIENTS * 64 / seconds, "tokens/s")
    recorder.value("median time to first token", statistics.median(firsts) * 1e3, "ms")


def drain(recorder: Recorder) -> None:
    """Stop the servers; each must exit with 0."""
    codes = [server().stop() for server in (demo, larger) if server.cache_info().currsize]
    recorder.value("exit codes", codes)
    assert not any(codes), codes


def _time_stream(prompt: str) -> float:
    started, first = time.perf_counter(), 0.0
    body = {"prompt": prompt, "max_tokens": 64, "ignore_eos": True, "temperature": 0}
    for _ in larger().stream("/v1/completions", body):
        first = first or time.perf_counter() - started
    return first


def _stop_demo() -> None:
    if demo.cache_info().currsize:
        demo().stop()
        demo.cache_clear()


def _ask(body: dict[str, Any]) -> dict[str, Any]:
    return demo().post("/v1/chat/completions", body)


def _text(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


def _show_warnings(server: Server, recorder: Recorder) -> None:
    marks = ("WARN", "slow path", "disabled", "attention kernel", "CUDA graph")
    lines = [line for line in server.log.splitlines() if any(mark in line for mark in marks)]
    recorder.value("log", "\n".join(["", *lines[-30:]]))


def _make_adapter(folder: Path) -> Path:
    """Write an adapter with weights large enough to change the answers."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    folder.mkdir()
    tensors, rank = {}, 4
    torch.manual_seed(1)
    with safe_open(DEMO / "model.safetensors", "pt") as file:
        names = file.keys()
        for name in names:
            if name.endswith(("q_proj.weight", "v_proj.weight", "down_proj.weight")):
                outputs, inputs = file.get_slice(name).get_shape()
                layer = f"base_model.model.{name.removesuffix('.weight')}"
                tensors[f"{layer}.lora_A.weight"] = torch.randn(rank, inputs) * 0.2
                tensors[f"{layer}.lora_B.weight"] = torch.randn(outputs, rank) * 0.2
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank}
    config["target_modules"] = ["q_proj", "v_proj", "down_proj"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
