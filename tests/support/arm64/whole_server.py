"""Run the whole server as on arm64, in an emulator: `python -m tests.support.arm64.whole_server`.

It asks the demo model the same questions here and there, in float32, and compares the answers; then
there in the format that the processor gets by itself. For Debian, as root. Only Python is emulated:
the packages are unpacked and the kernels compiled here. Everything is under build/arm64.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from container.model.kernels import build as build_kernels
from tests.support.servers import DEMO_MODEL, ROOT, free_port, serving

WORK = ROOT / "build" / "arm64"
SYSTEM = WORK / "root"
PROGRAM = SYSTEM / "opt" / "program"
PLATFORMS = [f"manylinux_2_{minor}_aarch64" for minor in (17, 24, 26, 27, 28, 31, 34)]
# The last release whose wheel for arm64 on PyPI is for CPUs; the image's is in PyTorch's index.
TORCH = "torch==2.10.0"
# What the server imports and that release lacks; only a GPU's attention needs it.
LATER = "\n\ndef restore_flash_attention_impl():\n    raise NotImplementedError\n"
QUESTIONS = ["What is deep learning?", "What is Amazon SageMaker?"]
# An emulated processor is that much slower.
PATIENT = {
    "HEARTBEAT_TIMEOUT": "0", "STEP_TIMEOUT": "0", "SAGEMAKER_STARTUP_TIMEOUT": "3600",
    "GRAMMAR_TIMEOUT": "600",
}  # fmt: skip
ENVIRON = {
    "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8",
    "PYTHONPATH": "/opt/program:/opt/packages:/opt/torch", "PYTHONSAFEPATH": "1",
    "HF_MODEL_ID": "/opt/ml/model", "HF_HUB_OFFLINE": "1", "HOST": "127.0.0.1",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip
START_WITHIN_S = 1500


def main() -> None:
    """Set up, ask and compare. Exits with 1 where the answers differ."""
    make_system()
    with tempfile.TemporaryDirectory() as logs:
        with serving(Path(logs) / "here.log") as server:
            expected = answers(server.url)
        with emulated(Path(logs) / "float32.log", DTYPE="float32") as url:
            report("float32", info := cpu_of(url), got := answers(url))
        with emulated(Path(logs) / "auto.log") as url:
            report("auto", cpu_of(url), answers(url))
    if got != expected:
        sys.exit(f"error: answers differ: {got} there, {expected} here")
    if info[0] != "neon_bf16":
        sys.exit(f"error: the kernels are {info[0]}, not neon_bf16")
    print("the answers are those of this machine")


def make_system() -> None:
    """Write a Debian of arm64 with the server, once; the server's own files each time."""
    if not (SYSTEM / "opt" / "torch" / "torch").is_dir():
        shutil.rmtree(SYSTEM, ignore_errors=True)
        SYSTEM.mkdir(parents=True)
        subprocess.run(["tests/support/arm64/debian.sh", WORK / "base.tar"], cwd=ROOT, check=True)
        subprocess.run(["tar", "-xf", WORK / "base.tar", "-C", SYSTEM], check=True)
        install("packages", "--require-hashes", "--requirement", "image/locks/server.lock")
        lock = (ROOT / "image/locks/torch-cpu.lock").read_text()
        names = [line.split()[0] for line in lock.splitlines() if "==" in line]
        install("torch", *(name for name in names if not name.startswith("torch==")), TORCH)
        with (SYSTEM / "opt/torch/torch/nn/attention/__init__.py").open("a") as file:
            file.write(LATER)
    shutil.rmtree(PROGRAM, ignore_errors=True)
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "container", PROGRAM / "container", ignore=ignored)
    shutil.copytree(DEMO_MODEL, SYSTEM / "opt/ml/model", dirs_exist_ok=True)
    subprocess.run(
        [sys.executable, PROGRAM / "container/model/kernels/build.py", "aarch64"], check=True
    )


def install(folder: str, *requirements: str) -> None:
    """Unpack wheels for arm64 into a folder below /opt."""
    platforms = [option for name in PLATFORMS for option in ("--platform", name)]
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile",
            "--only-binary", ":all:", *platforms, "--python-version", "3.11",
            "--implementation", "cp", "--target", SYSTEM / "opt" / folder, *requirements,
        ],
        cwd=ROOT, check=True,
    )  # fmt: skip


@contextmanager
def emulated(log: Path, **settings: str) -> Iterator[str]:
    """Yield the URL of a server in the emulator, which is ready."""
    port = free_port()
    environ = ENVIRON | PATIENT | settings | {"PORT": str(port)}
    words = [f"{name}={value}" for name, value in environ.items()]
    inside = (
        'mount --rbind /dev "$0/dev"; mount --rbind /sys "$0/sys"; mount -t proc proc "$0/proc"; '
        'exec chroot "$0" "$@"'
    )
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-ec", inside]
    command += [str(SYSTEM), "env", "-i", *words, "python3", "-m", "container", "serve"]
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        while not _is_ready(f"http://127.0.0.1:{port}"):
            if process.poll() is not None or time.monotonic() - started > START_WITHIN_S:
                sys.exit(f"error: never ready:\n{log.read_text()}")
            time.sleep(1)
        print(f"ready after {time.monotonic() - started:.0f} s", flush=True)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        return requests.get(f"{url}/ping", timeout=60).status_code == 200
    except requests.RequestException:
        return False


def cpu_of(url: str) -> tuple[str, str]:
    """Return the name of the kernels' processor, and the format."""
    info = requests.get(f"{url}/info", timeout=600).json()
    return info["cpu"], info["model_dtype"]


def answers(url: str) -> list[str]:
    """Ask the questions, greedily."""
    return [_ask(url, question) for question in QUESTIONS]


def _ask(url: str, question: str) -> str:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": question}], "max_tokens": 24, "temperature": 0,
    }  # fmt: skip
    response = requests.post(f"{url}/v1/chat/completions", json=body, timeout=1800)
    response.raise_for_status()
    return str(response.json()["choices"][0]["message"]["content"])


def report(dtype: str, info: tuple[str, str], texts: list[str]) -> None:
    """Print one line for each answer."""
    for question, text in zip(QUESTIONS, texts, strict=True):
        print(f"DTYPE={dtype}: {info[0]}, {info[1]}: {question} {text!r}", flush=True)


if __name__ == "__main__":
    assert os.getuid() == 0, "needs root, for a root folder and mounts of its own"
    assert build_kernels.MACHINE == "x86_64", "this machine is no x86 to emulate on"
    main()
