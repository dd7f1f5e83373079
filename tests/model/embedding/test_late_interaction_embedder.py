"""Models of late interaction: the library's vectors, and limits for each side."""

from pathlib import Path

import numpy as np
import pytest
import torch

from container.errors import ModelLoadError, PromptTooLong
from container.messages.embedder import Embed, EmbedInput, Pair, Truncation
from container.model.embedder_loader import load_model
from container.model.embedding.embedder import Embedder
from container.model.embedding.text_encoder import EncodedText
from tests.model.embedding.vectors import load
from tests.support.models import embedders

CPU = torch.device("cpu")
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
