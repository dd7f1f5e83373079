"""Imports, the device's facts and limits, and the self-test of each attention kernel."""

import importlib
import os
import shutil
import subprocess
import sysconfig
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.gpu_day.plan import Case, Scale
from benchmarks.gpu_day.results import Recorder

PACKAGES = (
    "torch", "triton", "transformers", "tokenizers", "huggingface-hub", "accelerate", "peft",
    "safetensors", "numpy", "flask", "gunicorn", "gevent", "msgspec", "pyzmq", "pydantic",
    "llguidance", "prometheus-client", "flash-attn-3", "bitsandbytes", "gptqmodel",
)  # fmt: skip
# Each imports another part of the server, and the last two what the other parts need.
MODULES = (
    "container.model.engine_loader", "container.model.embedder_loader",
    "container.model.kernels.triton_attention", "container.model.layers.triton_layer_ops",
    "container.frontend.app", "container.lifecycle.supervisor", "container.grammar.client",
    "container.handlers.worker_process", "tests.support.engines",
    "benchmarks.gpu",
)  # fmt: skip
# Of GPUs that attend with our kernel: a Llama, one with a window and a soft cap, one with sinks,
# a cache of latents, biases by position.
LAYERS: dict[str, tuple[int, int, int, int, dict[str, Any]]] = {
    "heads of 128": (32, 8, 128, 128, {}),
    "heads of 64": (14, 2, 64, 64, {}),
    "window and soft cap": (8, 4, 256, 256, {"window": 24, "softcap": 30.0}),
    "sinks": (64, 8, 64, 64, {"sinks": True, "window": 24}),
    "latents": (16, 1, 576, 512, {"is_latent": True}),
    "ALiBi": (8, 8, 64, 64, {"key_bias": True}),
}


def cases(scale: Scale) -> list[Case]:
    """Return the cases; on a CPU our kernels run in Triton's interpreter."""
    if scale.is_small:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    dtypes = ["float32"] if scale.is_small else ["bfloat16", "float16", "float32"]
    attention = [
        Case(f"attention in {dtype}", partial(check_attention, scale.device, dtype), 25)
        for dtype in dtypes
    ]
    return [
        Case("versions", show_versions, 10),
        Case("imports", import_all, 40),
        Case("device", partial(show_device, scale.device), 30),
        *attention,
        Case("eight bits in the cache", partial(check_eight_bits, scale.device), 25),
    ]


def show_versions(recorder: Recorder) -> None:
    """Write the versions of packages, and whether Triton can compile its launcher."""
    for package in PACKAGES:
        try:
            recorder.value(package, version(package))
        except PackageNotFoundError:
            recorder.value(package, "not installed")
    compiler = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    recorder.value("C compiler", compiler or "none")
    recorder.value("Python.h", (Path(sysconfig.get_path("include")) / "Python.h").exists())


def import_all(recorder: Recorder) -> None:
    """Import each part of the server by itself; fail after all were tried."""
    failures = []
    for module in MODULES:
        try:
            importlib.import_module(module)
        except Exception as error:
            failures.append(f"{module}: {type(error).__name__}: {error}")
            recorder.value(module, failures[-1])
    recorder.value("modules imported", len(MODULES) - len(failures), least=len(MODULES))
    if failures:
        raise ImportError("; ".join(failures))


def show_device(device: str, recorder: Recorder) -> None:
    """Write the device's facts, its memory's bandwidth and its speed of products."""
    import torch

    from benchmarks.gpu import device_name, memory_speed, product_speed

    recorder.value("name", device_name(device))
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        free, total = torch.cuda.mem_get_info()
        recorder.value("capability", f"{properties.major}.{properties.minor}")
        recorder.value("multiprocessors", properties.multi_processor_count)
        recorder.value("memory", total / 2**30, "GiB")
        recorder.value("free memory", free / 2**30, "GiB")
        shown = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=20)
        recorder.value("nvidia-smi", shown.stdout)
    recorder.value("bandwidth of a copy", memory_speed(device) / 1e9, "GB/s")
    recorder.value("bfloat16 products", product_speed(device) / 1e12, "TFLOP/s")


def check_attention(device: str, dtype: str, recorder: Recorder) -> None:
    """Write each kernel's error for each kind of layer, in multiples of the reference's."""
    failures = []
    for name in LAYERS:
        for kernel in _kernels(device, dtype):
            try:
                accuracy, is_accepted = _accuracy(device, dtype, name, kernel)
                recorder.value(f"{name}, {kernel}", str(accuracy))
                error = "" if is_accepted else f"off by {accuracy}"
            except Exception as caught:
                if type(caught).__name__ == "AcceleratorError":
                    raise
                error = f"{type(caught).__name__}: {caught}"[:300]
            if error:
                recorder.value(f"{name}, {kernel}, failed", error)
                failures.append(f"{name}, {kernel}")
    # Our kernel must serve them all; torch's are an addition.
    ours = [failure for failure in failures if "TRITON" in failure]
    if ours:
        raise AssertionError(f"failed: {', '.join(ours)}")


def _kernels(device: str, dtype: str) -> list[str]:
    if device == "cpu" or dtype == "float32":
        return ["TRITON"]
    return ["TRITON", "PAGED", "GATHERED"]


def _accuracy(device: str, dtype: str, name: str, kernel: str) -> tuple[Any, bool]:
    """Return a kernel's accuracy as the server measures it at start, and whether it would serve."""
    import torch

    from container.model.attention.metadata import AttentionParams
    from container.model.attention.varlen import AttentionKernels, Kernel
    from container.model.kv_cache.cache import LayerShape
    from container.model.loading import attention_backend

    heads, kv_heads, key_dim, value_dim, options = LAYERS[name]
    format_ = getattr(torch, dtype)
    is_latent = bool(options.get("is_latent"))
    options = {key: value for key, value in options.items() if key != "is_latent"}
    for option, shape in (("sinks", (heads,)), ("key_bias", (heads, 64))):
        if options.get(option):
            options = options | {option: torch.randn(shape).to(device, format_)}
    params = AttentionParams(key_dim**-0.5, heads=heads, **options)
    layer = LayerShape(kv_heads, key_dim, value_dim, is_latent=is_latent)
    chosen = Kernel[kernel]
    chunks = Kernel.REFERENCE if chosen is Kernel.TRITON else chosen
    if chosen in (Kernel.PAGED, Kernel.GATHERED):
        if not params.fits_varlen or key_dim != value_dim:
            return "not for this layer", True
        attention_backend.activate_flash_attention("FA3" if chosen is Kernel.PAGED else None)
    accuracy = attention_backend.kernel_accuracy(
        AttentionKernels(chosen, chunks), layer, params, format_, format_, torch.device(device)
    )
    return accuracy, accuracy.is_within(attention_backend.ALLOWANCE)


def check_eight_bits(device: str, recorder: Recorder) -> None:
    """Write the error of decodes that read a cache of eight bits."""
    import torch

    from container.model.attention.metadata import AttentionParams
    from container.model.attention.varlen import AttentionKernels, Kernel
    from container.model.kv_cache.cache import LayerShape
    from container.model.loading import attention_backend

    kernels = AttentionKernels(decodes=Kernel.TRITON)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    for cache_dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        accuracy = attention_backend.kernel_accuracy(
            kernels, LayerShape(8, 128, 128), AttentionParams(128**-0.5, heads=32), dtype,
            cache_dtype, torch.device(device),
        )  # fmt: skip
        recorder.value(str(cache_dtype), str(accuracy))
        assert accuracy.is_within(attention_backend.ALLOWANCE), (
            f"{cache_dtype} is off by {accuracy}"
        )
