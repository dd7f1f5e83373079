"""Compiles csrc/kernels.c, once for each instruction set: `python -m
container.model.kernels.build`, with `aarch64` for another kind of machine than this.

The C compiler is `CC`, else `cc`, else that of the Python package ziglang, which needs nothing
more. Only a build needs one: the server loads what lies beside this file, and does without if there
is nothing. Each library holds the hash of its source, so that a stale one is noticed.
"""

import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "csrc" / "kernels.c"
MACHINE = platform.machine().lower()
OPTIONS = ["-std=gnu11", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-fPIC", "-shared", "-s"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-psabi"]
# What each processor must have is what torch means by the name, and a little that comes with it.
V3 = ["-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mlzcnt", "-mmovbe"]
V4 = [*V3, "-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl"]
V4_BF16 = [*V4, "-mavx512bf16"]
AMX = [*V4_BF16, "-mamx-tile", "-mamx-bf16"]
X86 = {
    "amx": [*AMX, "-mprefer-vector-width=512"],
    "avx512_bf16": [*V4_BF16, "-mprefer-vector-width=512"],
    "avx512": [*V4, "-mprefer-vector-width=512"],
    "avx2": V3,
    "default": [],
}
# All arm64 processors have NEON; Graviton 3 and later have products of bfloat16 as well.
ARM64 = {"neon_bf16": ["-march=armv8.2-a+bf16"], "neon": []}
# What ziglang calls an option of GCC's and clang's.
OF_ZIG = {"-march=armv8.2-a+bf16": "-mcpu=generic+v8_2a+bf16"}


def targets(machine: str) -> dict[str, list[str]]:
    """Return the libraries for a kind of machine, each with its options for the compiler."""
    return {"x86_64": X86, "aarch64": ARM64, "arm64": ARM64}.get(machine, {"default": []})


TARGETS = targets(MACHINE)


def library(name: str) -> Path:
    """Where the library for an instruction set lies."""
    return FOLDER / f"kernels-{name}.so"


def source_hash() -> str:
    """Return the hash that a library of this source reports."""
    files = [*sorted(SOURCE.parent.glob("*.h")), SOURCE]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def find_compiler(machine: str = MACHINE) -> list[str]:
    """The command of a C compiler for a kind of machine. Exits when there is none."""
    if chosen := shlex.split(os.environ.get("CC", "")):
        return chosen
    if compiler := shutil.which("cc" if machine == MACHINE else f"{machine}-linux-gnu-gcc"):
        return [compiler]
    if importlib.util.find_spec("ziglang") is not None:
        # Without a target it compiles for the processor that it runs on.
        return [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-gnu.2.17"]
    sys.exit("error: no C compiler: install one, or the Python package ziglang, or set CC")


def main(machine: str = MACHINE) -> None:
    """Compile, side by side; a library appears as a whole or not at all."""
    command = [*find_compiler(machine), *OPTIONS, *WARNINGS, f'-DSOURCE_HASH="{source_hash()}"']
    running = []
    for name, flags in targets(machine).items():
        if "ziglang" in command:
            flags = [OF_ZIG.get(flag, flag) for flag in flags]
        draft = library(f"{name}-{os.getpid()}")
        process = subprocess.Popen([*command, *flags, "-o", str(draft), str(SOURCE)])
        running.append((process, draft, library(name)))
    failed = [target.name for process, _, target in running if process.wait()]
    if failed:
        sys.exit(f"error: not compiled: {', '.join(failed)}")
    for _, draft, target in running:
        draft.replace(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
