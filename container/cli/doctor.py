"""`python -m container doctor`: examines the settings, the machine and the network.

Every check is a function that yields findings; it starts no server and changes nothing.
"""

import os
import platform
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from container.errors import ConfigError
from container.lifecycle.startup_report import model_lines, torch_lines, variable_lines
from container.machine import Gpu, free_memory_bytes, visible_gpus
from container.settings.model import EmbeddingSettings, ModelSettings
from container.settings.server import HandlerSettings
from container.settings.settings import Settings
from container.settings.tgi import without_effect

OK, WARNING, PROBLEM = "ok", "warning", "problem"
GIB = 2**30
# Instruction sets of which something depends, in /proc/cpuinfo's words, the best last.
X86_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
ARM_FLAGS = ("asimd", "bf16", "i8mm", "sve")
# Bytes of a parameter by the format of the weights; int8 has scales for rows, int4 for groups.
PARAMETER_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.03}
CPU_PARAMETER_BYTES = PARAMETER_BYTES | {"int4": 0.6}
# What is left for weights, when caches and a step's intermediates have their share.
WEIGHT_SHARE = 0.75
HUB_TIMEOUT_S = 5.0
MIN_DISK_BYTES = 10 * GIB


@dataclass(frozen=True, slots=True)
class Finding:
    """One line; `remedy` says what to do about a warning or a problem."""

    subject: str
    state: str
    text: str
    remedy: str = ""


def examine(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the findings about settings, machine and network."""
    settings = None
    try:
        settings = Settings.from_environ(environ)
    except ConfigError as error:
        for problem in error.errors:
            yield Finding("settings", PROBLEM, problem, "correct it; docs/configuration.md")
    if settings is not None:
        yield from _start(settings.model, settings.embedding, settings.handlers, environ)
    yield from _variables(environ)
    yield from _processor()
    yield from _kernels()
    gpus = visible_gpus()
    defaults = settings or Settings()
    yield from _gpus(defaults.placement.num_gpus, gpus)
    yield from _fits(gpus)
    yield from _disk(environ)
    yield from _port(defaults.server.port)
    yield from _hub(defaults.model.model_id, defaults.model.hf_token, environ)


def _start(
    model: ModelSettings,
    embedding: EmbeddingSettings,
    handlers: HandlerSettings,
    environ: Mapping[str, str],
) -> Iterator[Finding]:
    """Yield what the server reports at its start, but not its lines about the machine."""
    for line in (*model_lines(model, embedding, handlers), *variable_lines(environ)):
        yield Finding("start", WARNING if line.is_warning else OK, line.text)


def _variables(environ: Mapping[str, str]) -> Iterator[Finding]:
    if names := without_effect(environ):
        yield Finding(
            "settings", WARNING, f"without effect here: {', '.join(names)}", "they may stay or go"
        )


def _processor() -> Iterator[Finding]:
    cpu = _cpuinfo()
    flags = set(cpu.get("flags", cpu.get("Features", "")).split())
    useful = X86_FLAGS if platform.machine() == "x86_64" else ARM_FLAGS
    known = [flag for flag in useful if flag in flags]
    name = cpu.get("model name") or platform.processor() or platform.machine()
    text = f"{name}, {psutil.cpu_count()} processors; {', '.join(known) or 'no vector extensions'}"
    if platform.machine() == "x86_64" and "avx2" not in flags:
        yield Finding(
            "processor", WARNING, text, "without AVX2 a CPU serves slowly; take a newer one"
        )
    else:
        yield Finding("processor", OK, text)


def _cpuinfo() -> dict[str, str]:
    """Return the fields of the first processor; empty where there is no such file."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _kernels() -> Iterator[Finding]:
    from container.model.loading.cpu_kernels import load_kernels

    if (kernels := load_kernels()) is not None:
        yield Finding("kernels", OK, f"compiled for {kernels.name}, self-test passed")
        return
    yield Finding(
        "kernels", WARNING, "no compiled kernels: a CPU serves with PyTorch's operations, slower",
        "run `python -m container.model.kernels.build`",
    )  # fmt: skip


def _gpus(num_gpus: int | None, gpus: list[Gpu]) -> Iterator[Finding]:
    yield from (Finding("GPU", OK, str(gpu)) for gpu in gpus)
    for line in torch_lines(num_gpus, gpus):
        if not line.is_warning:
            yield Finding("GPU", OK, line.text)
        elif gpus:
            remedy = "build the image with VARIANT=cuda, or install torch for CUDA"
            yield Finding("GPU", PROBLEM, line.text, remedy)
        else:
            yield Finding("GPU", WARNING, line.text)


def _fits(gpus: list[Gpu]) -> Iterator[Finding]:
    """Estimate how large a model fits, with a quarter of the memory left for cache and steps."""
    free = free_memory_bytes()
    yield Finding("memory", OK, f"{free / GIB:.1f} GiB free; {_largest(free, CPU_PARAMETER_BYTES)}")
    if gpus:
        total = sum(gpu.memory_bytes for gpu in gpus)
        yield Finding(
            "GPU memory", OK, f"{total / GIB:.0f} GiB; {_largest(total, PARAMETER_BYTES)}"
        )


def _largest(available: int, parameter_bytes: Mapping[str, float]) -> str:
    sizes = (
        f"{available * WEIGHT_SHARE / size / 1e9:.1f}B in {name}"
        for name, size in parameter_bytes.items()
    )
    return f"the largest model has about {', '.join(sizes)}"


def _disk(environ: Mapping[str, str]) -> Iterator[Finding]:
    home = Path(environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    folder = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    text = f"{free / GIB:.0f} GiB free for downloads in {home}"
    if free < MIN_DISK_BYTES:
        yield Finding("disk", WARNING, text, "set HF_HOME to a folder on a larger disk")
    else:
        yield Finding("disk", OK, text)


def _port(port: int) -> Iterator[Finding]:
    with socket.socket() as probe:
        probe.settimeout(2)
        is_taken = probe.connect_ex(("127.0.0.1", port)) == 0
    if is_taken:
        yield Finding("port", WARNING, f"something listens on {port}", "stop it, or set PORT")
    else:
        yield Finding("port", OK, f"{port} is free")


def _hub(model_id: str | None, token: str | None, environ: Mapping[str, str]) -> Iterator[Finding]:
    needs_hub = bool(model_id) and not Path(str(model_id)).expanduser().is_dir()
    bad = PROBLEM if needs_hub else WARNING
    if environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        yield Finding("Hub", OK, "HF_HUB_OFFLINE is set: only folders and the cache are read")
        return
    if error := _hub_error(model_id if needs_hub else None, token):
        remedy = "give a folder in HF_MODEL_ID, fill the cache of HF_HOME, or open the network"
        yield Finding("Hub", bad, error, remedy)
    else:
        yield Finding("Hub", OK, f"reachable{f', and {model_id} is there' if needs_hub else ''}")


def _hub_error(model_id: str | None, token: str | None) -> str | None:
    """Return why the Hub, or a repository on it, cannot be read; None if it can."""
    from huggingface_hub import HfApi

    name, url = model_id or "gpt2", os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        HfApi(token=token).model_info(name, timeout=HUB_TIMEOUT_S)
    except Exception as error:  # of several libraries below it
        reason = str(error).strip().splitlines()
        return f"{url} ({name}): {reason[0][:160] if reason else type(error).__name__}"
    return None
