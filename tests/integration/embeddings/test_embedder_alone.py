"""An embedding, rerank or classification model as the only model."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from huggingface_hub import InferenceClient
from sentence_transformers import SparseEncoder

from tests.support.models import embedders
from tests.support.models.embedders import MINILM
from tests.support.servers import Server, serving, spawn

QUERY = "How do cats sleep?"
DOCUMENTS = ["Cats sleep curled up.", "Bread is baked.", "Stocks fell " * 20, "Dogs bark."]


@pytest.fixture(scope="module")
def reranker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedders.save_cross_encoder(tmp_path_factory.mktemp("models") / "reranker")


@pytest.fixture(scope="module")
def reranker(reranker_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    with serving(log, "", EMBEDDING_MODEL_ID=os.fspath(reranker_folder)) as running:
        yield running


@pytest.fixture(scope="module")
def expected(reranker_folder: Path) -> np.ndarray:
    """The library's own scores, as probabilities."""
    pairs = [(QUERY, text) for text in DOCUMENTS]
    return embedders.cross_reference(reranker_folder).predict(pairs)


def post(server: Server, path: str, **body: object) -> requests.Response:
    return requests.post(f"{server.url}{path}", json=body, timeout=60)


@pytest.mark.parametrize("path", ["/rerank", "/invocations", "/"])
def test_rerank_in_teis_shape(reranker: Server, expected: np.ndarray, path: str) -> None:
    body = {"query": QUERY, "texts": DOCUMENTS, "truncate": True, "return_text": True}
    ranks = post(reranker, path, **body).json()
    scores = [rank["score"] for rank in ranks]
    assert scores == sorted(scores, reverse=True)
    assert np.allclose(scores, [expected[rank["index"]] for rank in ranks], atol=1e-4)
    assert all(rank["text"] == DOCUMENTS[rank["index"]] for rank in ranks)
    raw = post(reranker, path, query=QUERY, texts=DOCUMENTS, truncate=True, raw_scores=True).json()
    assert np.allclose([1 / (1 + np.exp(-rank["score"])) for rank in raw], scores, atol=1e-4)
    assert "text" not in raw[0]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/invocations"])
def test_rerank_in_coheres_and_jinas_shape(
    reranker: Server, expected: np.ndarray, path: str
) -> None:
    documents = [DOCUMENTS[0], {"text": DOCUMENTS[1]}, *DOCUMENTS[2:]]
    body = {"model": "m", "query": QUERY, "documents": documents, "top_n": 3}
    answer = post(reranker, path, **body, return_documents=True).json()
    assert [one["index"] for one in answer["results"]] == np.argsort(-expected)[:3].tolist()
    for one in answer["results"]:
        assert one["relevance_score"] == pytest.approx(expected[one["index"]], abs=1e-4)
        assert one["document"] == {"text": DOCUMENTS[one["index"]]}
    assert answer["model"] == "m"
    assert answer["usage"]["total_tokens"] > 0
    bare = post(reranker, path, **body, return_documents=False).json()
    assert "document" not in bare["results"][0]
    assert post(reranker, path, **body).json()["results"] == answer["results"]  # as vLLM and Jina


def test_rerank_with_documents_is_vllms_on_every_route(
    reranker: Server, expected: np.ndarray
) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS, "top_n": 0, "request_id": "r1"}
    answer = post(reranker, "/rerank", **body).json()
    assert [one["index"] for one in answer["results"]] == np.argsort(-expected).tolist()
    assert answer["id"] == "rerank-r1"
    assert answer["results"][0]["document"]["text"] in DOCUMENTS
    raw = post(reranker, "/rerank", **body, use_activation=False).json()["results"]
    best = raw[0]["relevance_score"]
    assert 1 / (1 + np.exp(-best)) == pytest.approx(expected.max(), abs=1e-4)
    cut = post(reranker, "/v1/rerank", **body, max_tokens_per_doc=2, max_tokens_per_query=2).json()
    assert cut["usage"]["total_tokens"] < answer["usage"]["total_tokens"]
    refused = post(reranker, "/rerank", **body, instruction="find")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "instruction"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"documents": ["a"]}, "`query`"),
        ({"query": "q", "documents": []}, "`documents` must not be empty"),
        ({"query": "q", "documents": ["a"], "top_n": -1}, "`top_n` must be at least 0"),
        ({"query": "q", "documents": ["a"], "max_tokens_per_doc": -9}, "`max_tokens_per_doc`"),
        ({"query": "q", "documents": ["a"], "max_chunks_per_doc": 9}, "`max_chunks_per_doc`"),
        ({"query": "q", "documents": ["a"], "truncate_prompt_tokens": 0}, "must be -1 or >= 1"),
        ({"query": "q", "documents": ["a"], "rank_fields": ["title"]}, "`rank_fields`"),
    ],
)
def test_mistakes_in_a_rerank_are_explained(reranker: Server, body: dict, words: str) -> None:
    answer = post(reranker, "/v1/rerank", **body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_routes_of_a_language_model_answer_404(reranker: Server) -> None:
    chat = post(reranker, "/v1/chat/completions", messages=[{"role": "user", "content": "Hi"}])
    assert chat.status_code == 404
    assert "no language model" in chat.json()["error"]["message"]
    info = requests.get(f"{reranker.url}/info", timeout=60).json()
    assert info["model_type"] == {"reranker": {"id2label": {"0": "LABEL_0"}}}
    (model,) = requests.get(f"{reranker.url}/v1/models", timeout=60).json()["data"]
    assert model["id"] == info["model_id"]
    assert reranker.metric("tgi_request_count") > 0


def test_predict_scores_texts_and_pairs(reranker: Server, expected: np.ndarray) -> None:
    one = post(reranker, "/predict", inputs=[QUERY, DOCUMENTS[0]]).json()
    assert one == [{"score": pytest.approx(expected[0], abs=1e-4), "label": "LABEL_0"}]
    batch = post(reranker, "/predict", inputs=[[QUERY, DOCUMENTS[0]], [QUERY, DOCUMENTS[1]]]).json()
    assert [prediction[0]["score"] for prediction in batch] == pytest.approx(
        expected[:2].tolist(), abs=1e-4
    )
    wrong = post(reranker, "/predict", inputs=[["a", "b", "c"]])
    assert (wrong.status_code, "list of 3" in wrong.json()["error"]) == (422, True)


def test_score_in_vllms_shape(reranker: Server, expected: np.ndarray) -> None:
    many = {"text_1": QUERY, "text_2": DOCUMENTS, "truncate_prompt_tokens": -1}
    answer = post(reranker, "/score", **many).json()
    assert [one["score"] for one in answer["data"]] == pytest.approx(expected.tolist(), abs=1e-4)
    assert [one["object"] for one in answer["data"]] == ["score"] * 4
    pairs = {"queries": [QUERY] * 2, "documents": DOCUMENTS[:2], "use_activation": False}
    raw = post(reranker, "/v1/score", **pairs).json()["data"]
    scores = [1 / (1 + np.exp(-one["score"])) for one in raw]
    assert scores == pytest.approx(expected[:2].tolist(), abs=1e-4)
    for body, words in (
        ({"text_1": QUERY}, "`text_2`"),
        ({"text_1": ["a", "b"], "text_2": ["a"]}, "`text_1` must have 1 text"),
        ({"text_1": "a", "text_2": []}, "`text_2` must not be empty"),
        ({"text_1": "a", "text_2": "b", "max_tokens_per_doc": -4}, "`max_tokens_per_doc`"),
        ({"text_1": "a", "text_2": "b", "truncate_prompt_tokens": -4}, "`truncate_prompt_tokens`"),
    ):
        wrong = post(reranker, "/score", **body)
        assert (wrong.status_code, words in wrong.json()["error"]["message"]) == (400, True)


def test_a_classifier_gives_each_label_a_probability(tmp_path: Path) -> None:
    folder = embedders.save_cross_encoder(tmp_path / "classifier", num_labels=3)
    with serving(tmp_path / "log", "", EMBEDDING_MODEL_ID=os.fspath(folder)) as server:
        (prediction,) = post(server, "/invocations", inputs=[["I like you"]]).json()
        assert sum(one["score"] for one in prediction) == pytest.approx(1.0, abs=1e-5)
        assert {one["label"] for one in prediction} == {"LABEL_0", "LABEL_1", "LABEL_2"}
        scores = [one["score"] for one in prediction]
        assert scores == sorted(scores, reverse=True)
        single = post(server, "/predict", inputs="I like you").json()
        assert single == prediction
        assert post(server, "/rerank", query="q", texts=["a"]).status_code == 424
        (row,) = post(server, "/classify", input="I like you").json()["data"]
        assert (row["num_classes"], sum(row["probs"])) == (3, pytest.approx(1.0, abs=1e-5))
        assert row["label"] == prediction[0]["label"]
        assert max(row["probs"]) == pytest.approx(prediction[0]["score"], abs=1e-6)
        (pooled,) = post(server, "/pooling", input="I like you", task="classify").json()["data"]
        assert pooled["data"] == row["probs"]
        assert post(server, "/pooling", input="a", task="token_embed").status_code == 400


def test_a_sparse_model_gives_the_librarys_terms(tmp_path: Path) -> None:
    folder = embedders.save_sparse_encoder(tmp_path)
    own = SparseEncoder(os.fspath(folder), device="cpu")
    expected = own.encode(DOCUMENTS[:2], convert_to_sparse_tensor=False).cpu().numpy()
    with serving(tmp_path / "log", "", EMBEDDING_MODEL_ID=os.fspath(folder)) as server:
        for path in ("/embed_sparse", "/invocations"):
            answer = post(server, path, inputs=DOCUMENTS[:2]).json()
            for terms, row in zip(answer, expected, strict=True):
                weights = np.zeros_like(row)
                weights[[term["index"] for term in terms]] = [term["value"] for term in terms]
                assert np.allclose(weights, row, atol=1e-3)
                assert len(terms) < len(row)
        assert post(server, "/embed", inputs="a").status_code == 424
        assert post(server, "/pooling", input="a").status_code == 404


def test_a_late_interaction_model_ranks_and_scores(tmp_path: Path) -> None:
    folder = embedders.save_late_interaction(tmp_path, "pylate")
    own = embedders.late_reference(folder)
    documents = ["Cats sleep, curled up.", "Bread is baked.", "Stocks fell.", "Dogs bark."]
    expected = own.similarity(own.encode_query([QUERY]), own.encode_document(documents))[0].tolist()
    best = np.argsort(-np.array(expected)).tolist()
    with serving(tmp_path / "log", "", EMBEDDING_MODEL_ID=os.fspath(folder)) as server:
        for path in ("/rerank", "/invocations", "/"):
            ranks = post(server, path, query=QUERY, texts=documents).json()
            assert [rank["index"] for rank in ranks] == best
            assert ranks[0]["score"] == pytest.approx(max(expected), abs=1e-3)
        for path in ("/rerank", "/v1/rerank", "/v2/rerank", "/invocations"):
            results = post(server, path, query=QUERY, documents=documents).json()["results"]
            assert [one["index"] for one in results] == best
        rows = post(server, "/score", queries=QUERY, documents=documents).json()["data"]
        assert [row["score"] for row in rows] == pytest.approx(expected, abs=1e-3)
        (tokens,) = post(server, "/embed_all", inputs=QUERY, prompt_name="query").json()
        assert np.allclose(tokens, own.encode_query(QUERY, convert_to_numpy=True), atol=1e-4)
        (pooled,) = post(server, "/pooling", input=documents[0]).json()["data"]
        vectors = own.encode_document(documents[0], convert_to_numpy=True)
        assert np.allclose(pooled["data"], vectors, atol=1e-4)
        refused = post(server, "/v1/embeddings", input="a")
        assert (refused.status_code, "late_interaction" in refused.text) == (404, True)
        named = post(server, "/rerank", query=QUERY, texts=documents, prompt_name="query")
        assert (named.status_code, "prompt_name" in named.text) == (422, True)
        assert post(server, "/rerank", query="cats " * 40, texts=["a"]).status_code == 413


def test_hf_task_makes_the_one_model_an_embedding_model(tmp_path: Path) -> None:
    with serving(tmp_path / "log", MINILM, HF_TASK="feature-extraction") as server:
        texts = ["A cat sat on the mat.", "Stocks fell."]
        expected = embedders.minilm().encode(texts)
        for path in ("/invocations", "/"):
            with InferenceClient(model=f"{server.url}{path}") as hub:
                got = hub.feature_extraction(texts)
            assert (got * expected).sum(1).min() > 0.9999
        near = post(
            server, "/invocations", inputs={"source_sentence": texts[0], "sentences": texts}
        ).json()
        assert near[0] == pytest.approx(1.0, abs=1e-5)
        assert near[1] < 0.5
        assert server.stop() == 0


def test_a_missing_model_ends_the_start_with_its_variable(tmp_path: Path) -> None:
    server = spawn(tmp_path / "log", "", EMBEDDING_MODEL_ID="/nowhere/model")
    assert server.process.wait(120) == 3
    assert "EMBEDDING_MODEL_ID=/nowhere/model: there is no such folder" in server.log
