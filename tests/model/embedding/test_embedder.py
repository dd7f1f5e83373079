"""Whatever the batch, vectors are those of sentence-transformers' own `encode`."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SparseEncoder

from container.errors import InvalidParameter, ModelLoadError, PromptTooLong
from container.messages.embedder import Embed, EmbedInput, Pair, Truncation
from container.model.embedder_loader import load_model
from container.model.embedding.embedder import Embedder
from container.model.embedding.text_encoder import EncodedText
from container.model.fallbacks import Fallbacks
from container.model.layers.cpu_encoder import EncoderStack
from container.model.layers.encoder_layer import FusedEncoderLayer
from container.model.reference_check import Mismatch
from tests.support.models import embedders, prepared
from tests.support.models.embedders import MINILM

WORDS = ["the", "cat", "sat", "on", "mats", "while", "deep", "learning", "was", "taught", "bread"]
CPU = torch.device("cpu")


def random_texts(count: int, longest: int) -> list[str]:
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, longest, count)
    return [" ".join(rng.choice(WORDS, length)) for length in lengths]


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Embedder:
    embedder = Embedder(load_model(folder, CPU, dtype), CPU, prepared.cpu_kernels(), Fallbacks())
    embedder.prepare()
    return embedder


def encode(
    embedder: Embedder,
    inputs: list[EmbedInput],
    prompt: str | None = None,
    cut: Truncation = Truncation.REFUSE,
) -> list[EncodedText]:
    return embedder.encode(Embed(1, inputs, "input", prompt, cut))


def vectors(
    embedder: Embedder,
    inputs: list[EmbedInput],
    prompt: str | None = None,
    cut: Truncation = Truncation.REFUSE,
) -> np.ndarray:
    outputs = embedder.run(encode(embedder, inputs, prompt, cut))
    rows = np.stack([np.frombuffer(row.raw, np.float32) for row in outputs])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def cosines(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return (got * expected / np.linalg.norm(expected, axis=1, keepdims=True)).sum(1)


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


LATE = ["native", "min", "pylate", "old pylate", "stanford"]


@pytest.mark.parametrize("kind", LATE)
def test_a_late_interaction_model_gives_the_librarys_vectors(kind: str, tmp_path: Path) -> None:
    folder = embedders.save_late_interaction(tmp_path, kind)
    embedder, own = load(folder), embedders.late_reference(folder)
    queries = ["how do cats sleep?", "bread", "stocks, and more"]
    documents = ["Cats sleep. Curled up!", "bread " * 20, "the cat, the dog", "a"]
    request = Embed(1, [*queries, *documents], per_token=True, num_queries=len(queries))
    outputs = embedder.run(embedder.encode(request))
    expected = [
        *own.encode_query(queries, convert_to_numpy=True),
        *own.encode_document(documents, convert_to_numpy=True),
    ]
    for got, vectors in zip(outputs, expected, strict=True):
        rows = np.frombuffer(got.raw, np.float32).reshape(got.count, -1)
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        assert rows.shape == vectors.shape
        assert np.allclose(rows, vectors, atol=1e-4)
    assert embedder.is_late_interaction
    assert embedder.is_mean_similarity == (kind == "min")


def test_each_side_of_a_late_interaction_has_its_own_limit(tmp_path: Path) -> None:
    embedder = load(embedders.save_late_interaction(tmp_path, "pylate"))

    def encoded(text: str, num_queries: int, cut: Truncation, **limits: int) -> EncodedText:
        request = Embed(1, [text], "texts", None, cut, True, num_queries, **limits)
        return embedder.encode(request)[0]

    long = "bread " * 60
    with pytest.raises(PromptTooLong, match=r"`texts`.*at most 12 .*63 in text 0"):
        encoded(long, 1, Truncation.REFUSE)
    with pytest.raises(PromptTooLong, match=r"`texts`.*at most 40 "):
        encoded(long, 0, Truncation.REFUSE)
    assert encoded(long, 1, Truncation.RIGHT).num_tokens == 12
    assert encoded(long, 0, Truncation.RIGHT).num_tokens == 40
    assert encoded(long, 0, Truncation.RIGHT, max_tokens=9).num_tokens == 9
    assert encoded(long, 0, Truncation.REFUSE, max_document_tokens=5).num_tokens == 8
    assert encoded(long, 1, Truncation.REFUSE, max_query_tokens=5).num_tokens == 12
    assert embedder.max_tokens == 40


def test_the_sides_of_a_pair_have_limits_of_their_own(tmp_path: Path) -> None:
    embedder = load(embedders.save_cross_encoder(tmp_path))
    pair: list[EmbedInput] = [Pair("cat " * 10, "bread " * 30)]
    (whole,) = embedder.encode(Embed(1, pair))
    (cut,) = embedder.encode(Embed(1, pair, max_query_tokens=4, max_document_tokens=6))
    assert (whole.num_tokens, cut.num_tokens) == (43, 13)


def test_an_error_names_the_side_that_is_too_long(tmp_path: Path) -> None:
    sides = load(embedders.save_late_interaction(tmp_path / "late", "pylate"))
    pairs = load(embedders.save_cross_encoder(tmp_path / "cross"))
    short, long = "cat", "bread " * 600

    def refuse(embedder: Embedder, inputs: list[EmbedInput], num_queries: int, text: str) -> None:
        request = Embed(1, inputs, "documents", num_queries=num_queries, query_field="queries")
        with pytest.raises(PromptTooLong, match=text):
            embedder.encode(request)

    refuse(sides, [long, short], 1, "^`queries` must have at most 12 tokens each.*'bread bread")
    refuse(sides, [short, long], 1, "^`documents` must have at most 40 tokens each.*'bread bread")
    for pair in (Pair(short, long), Pair(long, short)):
        expected = (
            f"^`queries` and `documents` must have at most {pairs.max_tokens} tokens tog.*r 1"
        )
        refuse(pairs, [Pair(short, short), pair], 0, expected)


@pytest.mark.parametrize("cut", [Truncation.RIGHT, Truncation.LEFT])
def test_long_texts_are_bounded_before_encoding(cut: Truncation, tmp_path: Path) -> None:
    embedder = load(embedders.save_cross_encoder(tmp_path))
    texts = "cat " * 90 + "bread " * 90, "bread " * 90 + "cat " * 90
    longer = Pair(texts[0] * 50, texts[1] * 50), Pair(texts[0], texts[1] * 50)
    (expected,) = embedder.encode(Embed(1, [Pair(*texts)], truncation=cut))
    got = embedder.encode(Embed(1, [*longer], truncation=cut))
    assert [text.token_ids for text in got] == [expected.token_ids] * 2
    (most,) = embedder.encode(
        Embed(1, [longer[0]], max_query_tokens=4, max_document_tokens=6, truncation=cut)
    )
    assert most.num_tokens == 13


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [("ColQwen2ForRetrieval", "images of pages"), ("ColBERTModel", "is not known")],
)
def test_other_late_interaction_models_are_refused_by_name(
    architecture: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(f'{{"architectures": ["{architecture}"]}}')
    with pytest.raises(ModelLoadError, match=f"{architecture}.*{reason}"):
        load_model(tmp_path, CPU, torch.float32)


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
