"""In any batch, vectors are those of sentence-transformers' own `encode`."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SparseEncoder

from container.errors import InvalidParameter, ModelLoadError, PromptTooLong
from container.messages.embedder import Embed, Pair, Truncation
from container.model.embedder_loader import load_model
from container.model.embedding.embedder import Embedder
from container.model.layers.cpu_encoder import EncoderStack
from container.model.layers.encoder_layer import FusedEncoderLayer
from container.model.reference_check import Mismatch
from tests.model.embedding.vectors import cosines, encode, load, random_texts, vectors
from tests.support.models import embedders, prepared
from tests.support.models.embedders import MINILM

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def minilm() -> Embedder:
    return load(MINILM)


def test_minilm_gives_the_librarys_vectors_whatever_the_lengths(minilm: Embedder) -> None:
    texts = random_texts(24, 200)
    assert minilm.is_unpadded
    assert cosines(vectors(minilm, texts), embedders.minilm().encode(texts)).min() > 0.99999


def test_minilm_in_bfloat16_is_close_to_float32() -> None:
    texts = random_texts(24, 200)
    got = vectors(load(MINILM, torch.bfloat16), texts)
    assert cosines(got, embedders.minilm().encode(texts)).min() > 0.999


@pytest.mark.parametrize(
    ("name", "is_unpadded"), [("bert", True), ("roberta", True), ("mpnet", False), ("qwen3", True)]
)
def test_other_architectures_and_poolings_too(name: str, is_unpadded: bool, tmp_path: Path) -> None:
    folder = embedders.save_embedder(tmp_path, name)
    embedder, reference = load(folder), embedders.reference(folder)
    texts = random_texts(20, 60)
    assert embedder.is_unpadded == is_unpadded
    for prompt in (None, "query"):
        expected = reference.encode(texts, prompt_name=prompt)
        assert cosines(vectors(embedder, texts, prompt), expected).min() > 0.9999, prompt


@pytest.fixture(params=[True, False], ids=["kernels", "torch"])
def with_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the kernels compute the layers, which on some processors they cannot."""
    if not request.param:
        monkeypatch.setattr(prepared, "cpu_kernels", lambda: None)
    return bool(request.param)


@pytest.mark.parametrize("name", ["bert", "roberta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bert_familys_layers_are_replaced(
    name: str, dtype: torch.dtype, with_kernels: bool, tmp_path: Path
) -> None:
    folder = embedders.save_embedder(tmp_path, name)
    embedder = load(folder, dtype)
    kinds = [type(module) for module in embedder.shape.first.modules()]
    is_stacked = with_kernels and prepared.linears().uses_kernels(dtype)
    # Without products in this format the layers stay as they are.
    num_fused = 2 if prepared.linears().packs(dtype) else 0
    expected_kinds = (1, 0) if is_stacked else (0, num_fused)
    assert (kinds.count(EncoderStack), kinds.count(FusedEncoderLayer)) == expected_kinds
    texts = random_texts(20, 90)
    expected = embedders.reference(folder).encode(texts)
    assert cosines(vectors(embedder, texts), expected).min() > 0.99


def test_layers_that_only_look_like_the_familys_stay(
    with_kernels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = embedders.save_embedder(tmp_path, "bert")
    is_stacked = with_kernels and prepared.linears().uses_kernels(torch.float32)
    kind = EncoderStack if is_stacked else FusedEncoderLayer
    monkeypatch.setattr(kind, "forward", lambda self, rows, *_, **__: rows * 2)
    embedder, reference = load(folder), embedders.reference(folder)
    texts = random_texts(8, 60)
    assert not [module for module in embedder.shape.first.modules() if type(module) is kind]
    assert cosines(vectors(embedder, texts), reference.encode(texts)).min() > 0.9999


@pytest.mark.parametrize("name", ["bert", "mpnet"])
def test_pooling_excludes_the_prompt(name: str, tmp_path: Path) -> None:
    folder = embedders.save_embedder(tmp_path, name, include_prompt=False)
    embedder, reference = load(folder), embedders.reference(folder)
    texts = random_texts(5, 30)
    encoded = encode(embedder, texts, "query")
    plain = encode(embedder, texts)
    outputs = embedder.run(encoded + plain)  # both kinds in one batch
    rows = np.stack([np.frombuffer(row.raw, np.float32) for row in outputs])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert cosines(rows[:5], reference.encode(texts, prompt_name="query")).min() > 0.9999
    assert cosines(rows[5:], reference.encode(texts)).min() > 0.9999


@pytest.mark.parametrize("name", ["bert", "roberta", "qwen3"])
def test_the_vectors_of_tokens_are_the_librarys(name: str, tmp_path: Path) -> None:
    folder = embedders.save_embedder(tmp_path, name)
    embedder, texts = load(folder), random_texts(6, 40)
    encoded = embedder.encode(Embed(1, [*texts], per_token=True))
    pooled = encode(embedder, texts)
    rows = embedder.run([*encoded, *pooled])  # both kinds in one batch
    reference = embedders.reference(folder)
    expected = reference.encode(texts, output_value="token_embeddings", batch_size=1)
    for got, own in zip(rows[: len(texts)], expected, strict=True):
        assert got.count == len(own)
        values = np.frombuffer(got.raw, np.float32).reshape(got.count, -1)
        assert np.allclose(values, own.cpu().numpy(), atol=1e-3)
    assert [row.count for row in rows[len(texts) :]] == [1] * len(texts)


def test_a_sparse_encoder_gives_the_librarys_terms(tmp_path: Path) -> None:
    folder = embedders.save_sparse_encoder(tmp_path)
    embedder, texts = load(folder), random_texts(5, 40)
    own = SparseEncoder(os.fspath(folder), device="cpu")
    expected = own.encode(texts, convert_to_sparse_tensor=False).cpu().numpy()
    for got, row in zip(embedder.run(encode(embedder, texts)), expected, strict=True):
        terms = np.frombuffer(got.raw, np.float32).reshape(got.count, 2)
        assert terms[:, 0].tolist() == row.nonzero()[0].tolist()
        assert np.allclose(terms[:, 1], row[row.nonzero()], atol=1e-3)


def test_a_cross_encoder_gives_the_librarys_scores(tmp_path: Path) -> None:
    folder = embedders.save_cross_encoder(tmp_path)
    pairs = list(zip(random_texts(12, 20), reversed(random_texts(12, 50)), strict=True))
    embedder = load(folder)
    encoded = encode(embedder, [Pair(*pair) for pair in pairs])
    got = embedder.rows(encoded)[:, 0]
    expected = embedders.cross_reference(folder).predict(
        pairs, activation_fn=torch.nn.Identity(), convert_to_tensor=True
    )
    assert torch.allclose(got, expected, atol=1e-4)


def test_ids_are_taken_as_they_are(minilm: Embedder) -> None:
    ids = embedders.minilm().tokenizer("a cat sat on a mat")["input_ids"]
    assert cosines(vectors(minilm, [ids]), vectors(minilm, ["a cat sat on a mat"]))[0] > 0.99999


def test_a_long_text_is_refused_or_truncated_on_either_side(minilm: Embedder) -> None:
    long = " ".join(["bread"] * 200 + ["cat"] * 200)
    with pytest.raises(PromptTooLong, match=r"`input`.*at most 256 .*402 in text 1"):
        encode(minilm, ["short", long])
    right = encode(minilm, [long], cut=Truncation.RIGHT)[0].token_ids
    left = encode(minilm, [long], cut=Truncation.LEFT)[0].token_ids
    bread, cat = embedders.minilm().tokenizer("bread cat", add_special_tokens=False)["input_ids"]
    assert (len(right), right[1], right[-2]) == (256, bread, cat)
    assert (right.count(bread), left.count(cat)) == (200, 200)
    expected = embedders.minilm().encode([long])
    assert cosines(vectors(minilm, [long], cut=Truncation.RIGHT), expected)[0] > 0.99999


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_text_is_cut_to_its_special_tokens_at_least(minilm: Embedder, most: int) -> None:
    text, pair = "bread " * 50, Pair("bread " * 50, "cat " * 50)
    for text_input, special in ((text, 2), (pair, 3)):
        request = Embed(0, [text_input], truncation=Truncation.RIGHT, max_tokens=most)
        assert minilm.encode(request)[0].num_tokens == max(most, special)


def test_unknown_prompts_and_ids_are_refused_by_name(minilm: Embedder) -> None:
    with pytest.raises(InvalidParameter, match=r"`prompt_name` 'passage'.*document, query"):
        encode(minilm, ["a"], "passage")
    with pytest.raises(InvalidParameter, match="token ids from 0 to 30521"):
        encode(minilm, [[101, 30522]])


def test_a_mismatch_of_packed_layers_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spoil(module: torch.nn.Module, *_: object, **__: object) -> None:
        next(module.parameters()).data.mul_(1.5)

    monkeypatch.setattr("container.model.embedding.embedder.pack", spoil)
    with pytest.raises(Mismatch, match="packed layers is off by"):
        load(MINILM)


def test_a_folder_without_usable_weights_is_explained(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="the embedding model cannot be loaded"):
        load_model(tmp_path, CPU, torch.float32)
    (tmp_path / "config_sentence_transformers.json").write_text('{"model_type": "OtherEncoder"}')
    with pytest.raises(ModelLoadError, match="a OtherEncoder model"):
        load_model(tmp_path, CPU, torch.float32)
