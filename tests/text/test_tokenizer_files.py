"""Tokenizers from the files that a model's folder may hold."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from container.errors import ModelLoadError
from container.text.tokenizer import Tokenizer
from tests.support.servers import DEMO_MODEL

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


def _changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Write the demo model's tokenizer with a change to its file."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_MODEL / name, folder)
    fields = json.loads((folder / "tokenizer.json").read_text())
    change(fields)
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize("token_id", [2**20, 2**31, 2**32 - 2])
def test_an_id_that_no_model_has_is_refused_by_its_number(token_id: int, tmp_path: Path) -> None:
    def change(fields: dict[str, Any]) -> None:
        vocabulary = fields["model"]["vocab"]
        vocabulary[max(vocabulary, key=vocabulary.get)] = token_id

    with pytest.raises(ModelLoadError, match=f"with the id {token_id}; the largest"):
        Tokenizer.from_folder(_changed(tmp_path, change))


def test_an_added_token_gets_the_next_id_whatever_its_file_says(tmp_path: Path) -> None:
    def change(fields: dict[str, Any]) -> None:
        far = fields["added_tokens"][0] | {"id": 2**32 - 2, "content": "<far>"}
        fields["added_tokens"].append(far)

    tokenizer = Tokenizer.from_folder(_changed(tmp_path, change))
    assert tokenizer.added_tokens["<far>"] == tokenizer.num_ids - 1 < 2**20
