"""Which peers there are, and the virtual environments that they are installed in.

A peer has an environment of its own, since its libraries may not fit ours. It is made once, beside
the benchmark's model; a peer that cannot be installed is left out, and the report says so.
"""

import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


class CannotInstall(Exception):
    """A peer's libraries cannot be installed here; the message has pip's last words."""


@dataclass(frozen=True, slots=True)
class PeerKind:
    """A script of this folder, what it is given after the model, and where it runs.

    `environment` is that of requirements-ENVIRONMENT.txt; None is the server's own.
    """

    name: str
    script: str
    environment: str | None = None
    arguments: tuple[str, ...] = ()

    def command(self, model_dir: Path) -> list[str]:
        """What starts it. Installs it where that is needed. Raises CannotInstall."""
        python = Path(sys.executable)
        if self.environment is not None:
            python = installed(self.environment, model_dir.with_name(f"{model_dir.name}-peers"))
        files = model_dir.with_name(f"{model_dir.name}-{self.name}")
        arguments = [argument.format(files=files) for argument in self.arguments]
        return [str(python), str(HERE / self.script), str(model_dir), *arguments]


TRANSFORMERS = PeerKind("transformers", "peer_transformers.py")
OPENVINO = PeerKind("openvino", "peer_openvino.py", "openvino", ("{files}",))
LLAMA = PeerKind("llama.cpp", "peer_llama.py", "llama", ("{files}", "BF16"))
LLAMA_Q8 = PeerKind("llama.cpp Q8_0", "peer_llama.py", "llama", ("{files}", "Q8_0"))
ALL = {kind.name: kind for kind in (TRANSFORMERS, OPENVINO, LLAMA, LLAMA_Q8)}


def installed(environment: str, folder: Path) -> Path:
    """The Python of an environment, which is made first where needed. Raises CannotInstall."""
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
