"""Makes the model that the benchmark serves: a 135M-parameter Llama shape with random weights.

Speed does not depend on what the weights are, so nothing has to be downloaded. The vocabulary is
the end token, the 256 bytes, and made-up words; each word is one token, so that a prompt of N
words has N tokens on whichever side it is tokenized. Run as a script it makes the folder that it is
given.
"""

import random
import shutil
import sys
import tempfile
from pathlib import Path

VOCABULARY = 49152
FIRST_WORD = 257
MAX_POSITIONS = 2048
# A new version gets a folder of its own, so that an old cached model is never measured for it.
FOLDER = "serving-benchmark-llama-135m-v1"
END_TOKEN = "<|endoftext|>"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WEIGHT_FILE = "model.safetensors"


def default_folder() -> Path:
    """Where the model is kept between runs."""
    return Path(tempfile.gettempdir()) / FOLDER


def random_prompt(numbers: random.Random, num_tokens: int) -> list[int]:
    """Draw ids of made-up words; a prompt that nobody has seen, so no prefix cache helps."""
    return [numbers.randrange(FIRST_WORD, VOCABULARY) for _ in range(num_tokens)]


def as_text(token_ids: list[int]) -> str:
    """Turn ids of made-up words into the text that tokenizes to them."""
    return "".join(" " + _word(token_id) for token_id in token_ids)


def make_model(folder: Path) -> None:
    """Write weights and tokenizer, as a whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=folder.name, dir=folder.parent))
    try:
        _write_weights(draft)
        write_tokenizer(draft)
        draft.chmod(0o755)
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def is_made(folder: Path) -> bool:
    """Whether the folder holds a model already."""
    return (folder / WEIGHT_FILE).is_file()


def _word(token_id: int) -> str:
    """Four letters, unlike those of any other id."""
    word = ""
    for _ in range(4):
        token_id, letter = divmod(token_id, len(LETTERS))
        word = LETTERS[letter] + word
    return word


def _write_weights(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        intermediate_size=1536,
        vocab_size=VOCABULARY,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    # With the tied embeddings the end token's logit is then 0, never the largest of 49152: every
    # completion is as long as it was asked to be.
    with torch.no_grad():
        model.get_input_embeddings().weight[0].zero_()
    model.to(torch.bfloat16).save_pretrained(folder)


def write_tokenizer(folder: Path) -> None:
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
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


if __name__ == "__main__":
    make_model(Path(sys.argv[1]))
