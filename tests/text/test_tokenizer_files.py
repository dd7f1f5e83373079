"""Tokenizers from the files that a model's folder may hold."""

import json
from pathlib import Path

import pytest
import sentencepiece

from container.text.tokenizer import Tokenizer

SENTENCES = ["what is deep learning", "the quick brown fox jumps over the lazy dog"]


@pytest.fixture
def sentencepiece_folder(tmp_path: Path) -> Path:
    """A folder whose only vocabulary is a SentencePiece model, as Llama 2's checkpoints had."""
    with (tmp_path / "tokenizer.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES), model_writer=model, model_type="bpe",
            vocab_size=320, byte_fallback=True, minloglevel=2,
        )  # fmt: skip
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"unk_token": "<unk>"}))
    return tmp_path


def test_a_sentencepiece_model_alone_is_a_tokenizer(sentencepiece_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(sentencepiece_folder)
    assert tokenizer.is_fast, "grammars need it"
    ids = tokenizer.encode("deep learning \u00e9", add_special_tokens=False)
    assert tokenizer.inner.decode(ids) == "deep learning \u00e9"
    assert tokenizer.end_ids == {2}
