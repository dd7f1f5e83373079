"""Describes the machine. Run as a script, it prints the description as JSON."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    """Describe the machine in another process, since the one that measures must not load torch."""
    command = [sys.executable, str(Path(__file__).resolve())]
    properties: dict[str, Any] = json.loads(subprocess.check_output(command, text=True))
    return properties


def _describe() -> dict[str, Any]:
    import psutil
    import torch

    from container.model.kernels.processor import has_bf16, processor_name

    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "capability": processor_name(),
        "bf16_instructions": has_bf16(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "commit": _commit(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    command = ["git", "rev-parse", "--short", "HEAD"]
    folder = Path(__file__).resolve().parent
    try:
        return subprocess.check_output(
            command, cwd=folder, text=True, stderr=subprocess.DEVNULL
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    print(json.dumps(_describe()))
