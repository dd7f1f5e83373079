"""Makes the models that benchmarks serve: Llama shapes with random weights, mostly of 135M.

Speed does not depend on the values of weights, so nothing has to be downloaded. The vocabulary is
the end token, the 256 bytes, and invented words; each word is one token, so a prompt of N words has
N tokens on every side. As a script it writes a model: `bench_model.py FOLDER [SHAPE]`.
"""

import random
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # slow to import
    from transformers import LlamaConfig

VOCABULARY = 49152
FIRST_WORD = 257


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama model; weights are bfloat16."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    positions: int
    tied: bool

    @property
    def product_weights(self) -> int:
        """Numbers that a decode multiplies with, the output layer included."""
        attention = (2 * self.heads + 2 * self.kv_heads) * self.head_dim * self.hidden
        layer = attention + 3 * self.hidden * self.intermediate
        return self.layers * layer + self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Numbers in the checkpoint, norms left out."""
        return self.product_weights + (0 if self.tied else self.vocabulary * self.hidden)

    def cache_bytes(self, tokens: int) -> int:
        """Return the bytes of the KV cache that a decode reads."""
        return self.layers * 2 * self.kv_heads * self.head_dim * tokens * 2

    def prompt_operations(self, tokens: int) -> float:
        """Multiplications and additions of a prompt, of which one row goes to the output layer."""
        layers = self.product_weights - self.vocabulary * self.hidden
        attention = self.layers * 4 * self.heads * self.head_dim * tokens * tokens / 2
        return 2 * layers * tokens + attention


SHAPES = {
    "135m": Shape(576, 30, 9, 3, 64, 1536, VOCABULARY, 2048, tied=True),
    "0.5b": Shape(896, 24, 14, 2, 64, 4864, VOCABULARY, 8192, tied=True),
    "1b": Shape(2048, 16, 32, 8, 64, 8192, 128256, 16384, tied=True),
    "8b": Shape(4096, 32, 32, 8, 128, 14336, 128256, 16384, tied=False),
    "tiny": Shape(64, 2, 4, 2, 16, 128, VOCABULARY, 16384, tied=True),
}
SMALL = "135m"
# A new version gets a folder of its own, so that an old cached model is never measured for it.
FOLDER = "serving-benchmark-llama-{}-v1"
END_TOKEN = "<|endoftext|>"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def default_folder(shape: str = SMALL) -> Path:
    """Return the folder that caches the model between runs."""
    return Path(tempfile.gettempdir()) / FOLDER.format(shape)


def weight_files(folder: Path) -> list[Path]:
    """Return the files with its weights."""
    return sorted(folder.glob("*.safetensors"))


def random_prompt(numbers: random.Random, num_tokens: int) -> list[int]:
    """Return the ids of a prompt of random words, which is in no prefix cache."""
    return [numbers.randrange(FIRST_WORD, VOCABULARY) for _ in range(num_tokens)]


def as_text(token_ids: list[int]) -> str:
    """Return the text that tokenizes to these ids of invented words."""
    return "".join(" " + _word(token_id) for token_id in token_ids)


def make_model(folder: Path, shape: str = SMALL) -> None:
    """Write weights and tokenizer, as a whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=folder.name, dir=folder.parent))
    try:
        _write_weights(draft, SHAPES[shape])
        write_tokenizer(draft, SHAPES[shape].positions)
        draft.chmod(0o755)
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def is_written(folder: Path) -> bool:
    """Whether the folder holds a model already."""
    return bool(weight_files(folder))


def _word(token_id: int) -> str:
    """Four letters, unlike those of any other id."""
    word = ""
    for _ in range(4):
        token_id, letter = divmod(token_id, len(LETTERS))
        word = LETTERS[letter] + word
    return word


def llama_config(shape: Shape) -> "LlamaConfig":
    """Describe a model of this shape to transformers."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=0,
    )


def _write_weights(folder: Path, shape: Shape) -> None:
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    if shape.parameters > 1e9:  # in float32 it might not fit the memory
        torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(llama_config(shape))
    # The end token's logit is then 0, never the largest of so many: every completion is as long as
    # it was asked to be.
    with torch.no_grad():
        model.get_output_embeddings().weight[0].zero_()
    model.to(torch.bfloat16).save_pretrained(folder)


def write_tokenizer(folder: Path, max_positions: int = SHAPES[SMALL].positions) -> None:
    """Write the tokenizer of made-up words."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["Ġ" + _word(token_id) for token_id in range(FIRST_WORD, VOCABULARY)]
    vocabulary = {token: i for i, token in enumerate([END_TOKEN, *alphabet, *words])}
    # ignore_merges: a word that is in the vocabulary is one token, though no merges lead to it.
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_TOKEN,
        model_max_length=max_positions,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


if __name__ == "__main__":
    make_model(Path(sys.argv[1]), *sys.argv[2:])
