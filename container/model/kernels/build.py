"""Compiles csrc/kernels.c, once for each instruction set: `python -m
container.model.kernels.build`.

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
X86 = {
    "avx512_bf16": [*V4_BF16, "-mprefer-vector-width=512"],
    "avx512": [*V4, "-mprefer-vector-width=512"],
    "avx2": V3,
    "default": [],
}
TARGETS: dict[str, list[str]] = X86 if MACHINE == "x86_64" else {"default": []}


def library(name: str) -> Path:
    """Where the library for an instruction set lies."""
    return FOLDER / f"kernels-{name}.so"


def source_hash() -> str:
    """Return the hash that a library of this source reports."""
    files = [*sorted(SOURCE.parent.glob("*.h")), SOURCE]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def find_compiler() -> list[str]:
    """The command of a C compiler. Exits when there is none."""
    if chosen := shlex.split(os.environ.get("CC", "")):
        return chosen
    if compiler := shutil.which("cc"):
        return [compiler]
    if importlib.util.find_spec("ziglang") is not None:
        # Without a target it compiles for the processor that it runs on.
        return [sys.executable, "-m", "ziglang", "cc", "-target", f"{MACHINE}-linux-gnu.2.17"]
    sys.exit("error: no C compiler: install one, or the Python package ziglang, or set CC")


def main() -> None:
    """Compile, side by side; a library appears as a whole or not at all."""
    command = [*find_compiler(), *OPTIONS, *WARNINGS, f'-DSOURCE_HASH="{source_hash()}"']
    running = []
    for name, flags in TARGETS.items():
        draft = library(f"{name}-{os.getpid()}")
        process = subprocess.Popen([*command, *flags, "-o", str(draft), str(SOURCE)])
        running.append((process, draft, library(name)))
    failed = [target.name for process, _, target in running if process.wait()]
    if failed:
        sys.exit(f"error: not compiled: {', '.join(failed)}")
    for _, draft, target in running:
        draft.replace(target)


if __name__ == "__main__":
    main()
