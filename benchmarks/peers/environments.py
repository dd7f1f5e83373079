"""The peers, and the virtual environments that they are installed in.

A peer has its own environment, since its libraries may conflict with ours. It is created once,
beside the benchmark's model; a peer that cannot be installed is left out, and the report says so.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Of transformers' cache; see SETTINGS of peer_transformers.py.
PAGE_SIZE, USUAL_PAGES = 32, 256
# llama.cpp's context has room for 64 sequences of 192 tokens at least.
SMALLEST_CONTEXT = 64 * 192


class CannotInstall(Exception):
    """A peer cannot run here: pip's last words, or what the model's folder lacks."""


@dataclass(frozen=True, slots=True)
class Task:
    """The model of a run, its number format, and the tokens that a cache must hold.

    Environments and converted models are beside `scratch`; their names begin with its name.
    """

    model_dir: Path
    scratch: Path
    dtype: str
    max_tokens: int

    @property
    def environments(self) -> Path:
        """Folder of the virtual environments, which all models share."""
        return self.scratch.with_name(f"{self.scratch.name}-peers")

    def files(self, peer: str) -> Path:
        """Folder of a peer's conversions; another version of the weights has another one."""
        if self.model_dir == self.scratch:
            return self.scratch.with_name(f"{self.scratch.name}-{peer}")
        stats = [path.stat() for path in sorted(self.model_dir.glob("*.safetensors"))]
        key = [str(self.model_dir), *((stat.st_size, stat.st_mtime_ns) for stat in stats)]
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:8]
        return self.scratch.with_name(f"{self.scratch.name}-{self.model_dir.name}-{digest}-{peer}")

    def gguf(self) -> Path:
        """The GGUF file in the model's folder. Raises CannotInstall."""
        files = sorted(self.model_dir.glob("*.gguf"))
        if len(files) != 1:
            raise CannotInstall(f"{self.model_dir} has {len(files)} GGUF files; one is needed")
        return files[0]

    def transformers_settings(self) -> str:
        """Settings of its cache as JSON, where its own are too small."""
        pages = -(-self.max_tokens // PAGE_SIZE)
        return json.dumps({"num_blocks": pages} if pages > USUAL_PAGES else {})


@dataclass(frozen=True, slots=True)
class PeerKind:
    """A script of this folder, its arguments after the model, and its environment.

    `environment` is that of requirements-ENVIRONMENT.txt; None is the server's own.
    """

    name: str
    script: str
    environment: str | None = None
    arguments: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """Name of the script as a module, for `python -m`."""
        return f"benchmarks.peers.{self.script}"

    def command(self, task: Task) -> list[str]:
        """Return the command that starts it, installed where needed. Raises CannotInstall."""
        arguments = [self._filled(argument, task) for argument in self.arguments]
        python = Path(sys.executable)
        if self.environment is not None:
            python = installed(self.environment, task.environments)
        return [str(python), "-m", self.module, str(task.model_dir), *arguments]

    def _filled(self, argument: str, task: Task) -> str:
        values = {
            "{files}": lambda: str(task.files(self.name)),
            "{gguf}": lambda: str(task.gguf()),
            "{dtype}": lambda: task.dtype,
            "{context}": lambda: str(max(SMALLEST_CONTEXT, task.max_tokens)),
            "{settings}": task.transformers_settings,
        }
        return values[argument]() if argument in values else argument


TRANSFORMERS = PeerKind("transformers", "peer_transformers", None, ("{settings}", "{dtype}"))
OPENVINO = PeerKind("openvino", "peer_openvino", "openvino", ("{files}", "{dtype}"))
LLAMA = PeerKind("llama.cpp", "peer_llama", "llama", ("{files}", "BF16", "{context}"))
LLAMA_Q8 = PeerKind("llama.cpp Q8_0", "peer_llama", "llama", ("{files}", "Q8_0", "{context}"))
LLAMA_GGUF = PeerKind("llama.cpp GGUF", "peer_llama", "llama", ("{gguf}", "-", "{context}"))
ALL = {kind.name: kind for kind in (TRANSFORMERS, OPENVINO, LLAMA, LLAMA_Q8, LLAMA_GGUF)}


def installed(environment: str, folder: Path) -> Path:
    """Return an environment's Python; create it if necessary. Raises CannotInstall."""
    home = folder / environment
    python = home / "bin" / "python"
    is_whole = home / "is_whole"
    if not is_whole.is_file():
        shutil.rmtree(home, ignore_errors=True)
        venv.create(home, with_pip=True)
        _pip(python, "install", "--quiet", "-r", str(HERE / f"requirements-{environment}.txt"))
        if environment == "openvino":
            # Comes along, is not needed, and does not fit torch's build for CPUs.
            _pip(python, "uninstall", "--quiet", "--yes", "torchvision")
        is_whole.touch()
    return python


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", *arguments, "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotInstall("\n".join(done.stderr.splitlines()[-5:]))
