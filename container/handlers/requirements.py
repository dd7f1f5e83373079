"""Installing `code/requirements.txt` before the user's code is loaded.

The server's own packages keep their versions (pip gets them as constraints), so user code cannot
break the engine; a conflict stops the start with pip's message. A folder `wheels` beside the file
replaces the package index, for endpoints without a network.
"""

import importlib.metadata
import logging
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from container.errors import ModelLoadError

log = logging.getLogger(__name__)

OWN_PACKAGE = "sagemaker-llm-container"
SHOWN_LINES = 6
# How pip words the sides of a conflict, and which of them is a constraint.
CONFLICT_SIDE = re.compile(r"^The user requested |^The conflict is caused by| depends on ")
PINNED = "The user requested (constraint)"


def install(requirements: Path) -> None:
    """Install the requirements. Raises ModelLoadError with pip's reason."""
    log.info("handler: installing %s", requirements)
    with tempfile.TemporaryDirectory(prefix="container-pip-") as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text(_installed())
        result = subprocess.run(
            _command(requirements, constraints),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    if result.returncode != 0:
        reason = _reason(result.stdout + result.stderr) or f"exit code {result.returncode}"
        raise ModelLoadError(f"{requirements}: pip could not install it:\n{reason}")


def _reason(output: str) -> str:
    """Select pip's errors and, of a conflict, which requirement wants what and what is pinned."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    shown = errors[-SHOWN_LINES:] or lines[-SHOWN_LINES:]
    sides = [line for line in lines if CONFLICT_SIDE.search(line)]
    if any(PINNED in line for line in sides):
        sides.append(
            "(constraint) is the version of the server's own package, which user code cannot "
            "change: write a range that contains it, or leave the package out"
        )
    return "\n".join([*sides[-SHOWN_LINES:], *shown])


def _command(requirements: Path, constraints: Path) -> list[str]:
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    command += ["-r", str(requirements), "-c", str(constraints)]
    wheels = requirements.parent / "wheels"
    if wheels.is_dir():
        command += ["--no-index", "--find-links", str(wheels)]
    if not os.access(sysconfig.get_path("purelib"), os.W_OK):
        command += ["--user"]
    return command


def _installed() -> str:
    pins = {
        f"{distribution.name}=={distribution.version}"
        for distribution in importlib.metadata.distributions()
        if distribution.name and distribution.name.lower() != OWN_PACKAGE
    }
    return "\n".join(sorted(pins)) + "\n"
