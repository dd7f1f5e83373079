"""Embeddings beside a language model: real clients, real weights, real processes."""

import base64
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import psutil
import pytest
import requests
from huggingface_hub import InferenceClient
from langchain_openai import OpenAIEmbeddings

from tests.support.models import embedders
from tests.support.models.embedders import MINILM
from tests.support.servers import ROOT, Server, SharedServers, wait_for

TEXTS = ["A cat sat on the mat.", "A kitten lay on a rug.", "Stock prices fell on Monday."]
LONG = "bread " * 300


@pytest.fixture(scope="module")
def server(shared_servers: SharedServers) -> Server:
    settings = {"EMBEDDING_MODEL_ID": os.fspath(MINILM), "MAX_EMBEDDING_INPUTS": "64"}
    return shared_servers.get(**settings)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as openai_client:
        yield openai_client


def post(server: Server, path: str, **body: object) -> requests.Response:
    return requests.post(f"{server.url}{path}", json=body, timeout=60)


def check_same(got: object, texts: list[str]) -> None:
    expected = embedders.minilm().encode(texts)
    cosines = (np.array(got, np.float32) * expected).sum(1)
    assert cosines.min() > 0.9999


def test_cohere_embeds_in_each_type(server: Server) -> None:
    types = ["float", "base64", "binary", "ubinary"]
    body = {"texts": TEXTS, "input_type": "search_document", "embedding_types": types}
    answers = [post(server, path, **body).json() for path in ("/v2/embed", "/invocations")]
    assert answers[0]["embeddings"] == answers[1]["embeddings"]
    vectors = answers[0]["embeddings"]
    check_same(vectors["float"], TEXTS)
    assert np.frombuffer(base64.b64decode(vectors["base64"][0]), "<f4").tolist() == pytest.approx(
        vectors["float"][0]
    )
    bits = np.packbits(np.array(vectors["float"]) >= 0, axis=1)
    assert vectors["ubinary"] == bits.tolist()
    assert vectors["binary"] == (bits.astype(int) - 128).tolist()
    parts = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    cut = {"inputs": parts, "truncate": "start", "output_dimension": 8, "max_tokens": 4}
    answer = post(server, "/v2/embed", **cut).json()
    assert np.shape(answer["embeddings"]["float"]) == (3, 8)
    assert answer["meta"]["billed_units"] == {"input_tokens": 12}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"texts": ["a"], "images": ["data:image/png;base64,"]}, "images"),
        ({"texts": ["a"], "embedding_types": ["int8"]}, "embedding_types"),
        ({"texts": ["a"], "input_type": "poem"}, "input_type"),
        ({"texts": ["a"], "inputs": []}, "texts"),
        ({"inputs": [{"content": [{"type": "image_url"}]}]}, "inputs"),
        ({"texts": [LONG], "truncate": "NONE"}, "texts"),
        ({"texts": ["a"], "priority": 1}, "priority"),
    ],
)
def test_cohere_bodies_are_refused_by_name(
    server: Server, body: dict[str, object], field: str
) -> None:
    refused = post(server, "/v2/embed", **body)
    assert refused.status_code == 400
    assert field in refused.json()["error"]["message"]


def test_openai_float_and_base64_are_the_librarys_vectors(client: openai.OpenAI) -> None:
    floats = client.embeddings.create(model="m", input=TEXTS, encoding_format="float")
    check_same([row.embedding for row in floats.data], TEXTS)
    coded = client.embeddings.create(model="m", input=TEXTS)  # the client's default is base64
    assert [row.embedding for row in coded.data] == [row.embedding for row in floats.data]
    raw = client.embeddings.create(model="m", input=TEXTS[0], encoding_format="base64")
    assert np.frombuffer(base64.b64decode(raw.data[0].embedding), "<f4").shape == (384,)
    num_tokens = sum(len(embedders.minilm().tokenizer(text)["input_ids"]) for text in TEXTS)
    assert floats.usage.prompt_tokens == floats.usage.total_tokens == num_tokens
    assert [row.index for row in floats.data] == [0, 1, 2]
    assert floats.model == "m"


def test_openai_dimensions_cut_and_renormalise(client: openai.OpenAI) -> None:
    short = client.embeddings.create(model="m", input=TEXTS, dimensions=64)
    got = np.array([row.embedding for row in short.data])
    cut = embedders.minilm().encode(TEXTS)[:, :64]
    assert np.allclose(got, cut / np.linalg.norm(cut, axis=1, keepdims=True), atol=1e-5)
    with pytest.raises(openai.BadRequestError, match=r"`dimensions` must be from 1 to 384") as info:
        client.embeddings.create(model="m", input=TEXTS, dimensions=385)
    assert info.value.param == "dimensions"


def test_openai_token_ids_in_both_forms(client: openai.OpenAI) -> None:
    ids = embedders.minilm().tokenizer(TEXTS)["input_ids"]
    check_same([client.embeddings.create(model="m", input=ids[0]).data[0].embedding], TEXTS[:1])
    check_same(
        [row.embedding for row in client.embeddings.create(model="m", input=ids).data], TEXTS
    )


def test_similar_sentences_are_nearer(client: openai.OpenAI) -> None:
    pairs = [
        ("How do I reset my password?", "I forgot my login credentials.", "The soup is too salty."),
        ("The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."),
        ("Machine learning needs data.", "Models are trained on examples.", "Cats like fish."),
    ]
    for anchor, near, far in pairs:
        rows = client.embeddings.create(model="m", input=[anchor, near, far]).data
        a, b, c = (np.array(row.embedding) for row in rows)
        assert a @ b > a @ c + 0.1, anchor


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"input": LONG}, "input", "at most 256 tokens each. Given: 302 in text 0"),
        ({"input": ["a", LONG]}, "input", "in text 1"),
        ({"input": []}, "input", "must not be empty"),
        ({"input": [99999]}, "input", "token ids from 0 to 30521"),
        ({"input": ["a"] * 65}, "input", "at most 64 texts (MAX_EMBEDDING_INPUTS). Given: 65"),
        ({"input": "a", "dimensions": 0}, "dimensions", "from 1 to 384"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
        ({"input": "a", "prompt_name": "passage"}, "prompt_name", "document, query"),
        ({"input": {"text": "a"}}, "input", ""),
        ({}, "input", "required"),
    ],
)
def test_mistakes_are_explained(server: Server, body: dict, field: str, words: str) -> None:
    answer = post(server, "/v1/embeddings", **body)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"].startswith(field)
    assert words in error["message"]


@pytest.mark.parametrize("token_id", [-1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/pooling", "/embed", "/embed_all"])
def test_ids_that_no_model_has_are_the_clients_fault(
    server: Server, path: str, token_id: int
) -> None:
    for ids in ([token_id], [[5, token_id]]):
        refused = post(server, path, input=ids, inputs=ids, model="m")
        assert 400 <= refused.status_code < 500, refused.text
        assert len(refused.content) < 1000


def test_truncate_cuts_long_texts_from_either_side(server: Server) -> None:
    cut = post(server, "/v1/embeddings", input=LONG + "cat", truncate=True).json()
    check_same([cut["data"][0]["embedding"]], [LONG + "cat"])  # the library cuts on the right
    left = post(
        server, "/embed", inputs=LONG + "cat", truncate=True, truncation_direction="Left"
    ).json()
    check_same(left, ["bread " * 253 + "cat"])


def test_a_text_far_too_long_is_refused_or_cut(server: Server) -> None:
    long = "the cat sat on the mat " * 60_000
    refused = post(server, "/v1/embeddings", input=long)
    assert refused.status_code == 400
    assert "more than 256 in text 0" in refused.json()["error"]["message"]
    for side, part in (("right", long[:20_000]), ("left", long[-20_000:])):
        cut = {"truncate": True, "truncation_direction": side}
        whole, short = (post(server, "/embed", inputs=text, **cut) for text in (long, part))
        assert whole.ok, whole.text
        assert np.allclose(whole.json(), short.json(), atol=1e-5)
        assert whole.elapsed.total_seconds() < 20


def test_llm_servings_route_is_the_same(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/", api_key="OPENAI_API_KEY") as client:
        answer = client.embeddings.create(model="text-embedding-ada-002", input=TEXTS)
    check_same([row.embedding for row in answer.data], TEXTS)


def test_huggingface_hubs_feature_extraction(server: Server) -> None:
    with InferenceClient(model=f"{server.url}/embed") as hub:
        check_same(hub.feature_extraction(TEXTS), TEXTS)
        raw = hub.feature_extraction(TEXTS[0], normalize=False, truncate=True)
    assert not np.isclose(np.linalg.norm(raw), 1.0, atol=1e-3)
    check_same(raw / np.linalg.norm(raw), TEXTS[:1])
    with InferenceClient(model=f"{server.url}/similarity") as similarity:
        near, far = similarity.sentence_similarity(TEXTS[0], other_sentences=TEXTS[1:])
    assert near > far + 0.3


def test_langchain(server: Server) -> None:
    with httpx.Client() as http:
        chain = OpenAIEmbeddings(
            base_url=f"{server.url}/v1",
            api_key="-",
            model="m",
            check_embedding_ctx_length=False,  # it counts tokens as OpenAI's models do
            http_client=http,
        )
        check_same(chain.embed_documents(TEXTS), TEXTS)
        check_same([chain.embed_query(TEXTS[0])], TEXTS[:1])


def test_invocations_recognises_the_format(server: Server) -> None:
    embedded = post(server, "/invocations", input=TEXTS).json()
    check_same([row["embedding"] for row in embedded["data"]], TEXTS)
    generated = post(
        server, "/invocations", inputs="What is", parameters={"max_new_tokens": 2}
    ).json()
    assert generated[0]["generated_text"].startswith("What is")
    refused = post(server, "/invocations", query="q", documents=["a"])
    assert refused.status_code == 404
    assert "needs a model of kind reranker" in refused.json()["error"]["message"]


def test_routes_for_another_kind_of_model_are_teis_404(server: Server) -> None:
    refused = post(server, "/rerank", query="q", texts=["a"])
    assert (refused.status_code, refused.json()["error_type"]) == (424, "Backend")
    too_long = post(server, "/embed", inputs=LONG)
    assert (too_long.status_code, too_long.json()["error_type"]) == (413, "Validation")


def test_the_embedder_is_listed_and_counted(server: Server, client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list().data]
    assert names[1:] == [os.fspath(MINILM)]
    before = server.metric("embedder_texts_total")
    post(server, "/embed", inputs=TEXTS)
    # Each status is a quarter of a second old at most, so the numbers arrive one after another.
    wait_for(lambda: server.metric("embedder_texts_total") >= before + 3, 10)
    wait_for(lambda: server.metric("embedder_waiting_texts") == 0, 10)


def test_many_clients_with_mixed_lengths_get_their_own_vectors(server: Server) -> None:
    texts = [f"{number} " + "word " * (number * 37 % 200) for number in range(40)]

    def ask(text: str) -> list[float]:
        answer = post(server, "/embeddings", input=text).json()
        vector: list[float] = answer["data"][0]["embedding"]
        return vector

    with ThreadPoolExecutor(16) as pool:
        check_same(list(pool.map(ask, texts)), texts)


def test_the_example_finds_the_right_document(server: Server) -> None:
    script = ROOT / "examples" / "retrieval" / "ask.py"
    question = "How many days do I have to send something back for my money?"
    done = subprocess.run(
        [sys.executable, os.fspath(script), question, "--url", f"{server.url}/v1"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    found, answer = done.stdout.split("Answer:")
    assert "Refunds are possible within 30 days" in found
    assert answer.strip()


def test_a_killed_embedder_is_restarted_beside_the_engine(server: Server) -> None:
    old = _child(server, "embedder")
    engine = server.engine().pid
    old.send_signal(signal.SIGKILL)
    wait_for(lambda: server.ping().status_code == 503, 20)
    chat = post(server, "/v1/chat/completions", messages=[{"role": "user", "content": "Hi"}])
    assert chat.status_code == 200
    unavailable = post(server, "/v1/embeddings", input="a")
    assert unavailable.status_code in (200, 503)
    server.wait_ready()
    assert (_child(server, "embedder").pid, server.engine().pid) != (old.pid, engine)
    assert server.engine().pid == engine
    assert post(server, "/v1/embeddings", input="a").status_code == 200


def _child(server: Server, name: str) -> psutil.Process:
    children = psutil.Process(server.process.pid).children()
    return next(child for child in children if name in child.cmdline())


def test_pooling_and_score_in_vllms_shape(server: Server) -> None:
    plain = post(server, "/v1/embeddings", input=TEXTS).json()
    pooled = post(server, "/pooling", input=TEXTS, task="embed").json()
    assert [row["data"] for row in pooled["data"]] == [row["embedding"] for row in plain["data"]]
    assert pooled["usage"]["total_tokens"] == plain["usage"]["total_tokens"]
    check_same([row["data"] for row in pooled["data"]], TEXTS)
    scores = [
        row["score"] for row in post(server, "/score", text_1=TEXTS[0], text_2=TEXTS).json()["data"]
    ]
    assert scores[0] == pytest.approx(1.0, abs=1e-5)
    assert scores[0] > scores[1] > scores[2]
    assert post(server, "/classify", input="a").status_code == 404


def test_vllms_fields_cut_texts_on_every_route(server: Server) -> None:
    long = LONG + "cat"
    short = post(server, "/v1/embeddings", input=long, truncate_prompt_tokens=5).json()
    assert short["usage"]["total_tokens"] == 5
    check_same([short["data"][0]["embedding"]], ["bread " * 3])
    left = {"truncate_prompt_tokens": 5, "truncation_side": "left"}
    pooled = post(server, "/pooling", input=long, **left).json()
    check_same([pooled["data"][0]["data"]], ["bread bread cat"])
    own = post(server, "/pooling", input=long, truncate_prompt_tokens=-1).json()
    assert own["usage"]["total_tokens"] == 256
    pair = {"text_1": long, "text_2": long, "max_tokens_per_query": 3, "max_tokens_per_doc": 4}
    assert post(server, "/score", **pair).json()["usage"]["total_tokens"] == 3 + 4 + 2 * 2
    raw = post(server, "/v1/embeddings", input="a", use_activation=False)
    assert raw.status_code == 200
    for name, value in (("messages", [{}]), ("priority", 3), ("chat_template", "x"),
                        ("embed_overrides", [[1.0]]), ("truncate_prompt_tokens", 0)):  # fmt: skip
        refused = post(server, "/v1/embeddings", **{"input": "a", name: value})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, name)


def test_the_vectors_of_all_tokens(server: Server) -> None:
    """Whose mean is the pooled vector of this model."""
    whole = embedders.minilm().encode(TEXTS, output_value="token_embeddings")
    got = [np.array(rows) for rows in post(server, "/embed_all", inputs=TEXTS).json()]
    for rows, expected in zip(got, whole, strict=True):
        assert np.allclose(rows, expected.cpu().numpy(), atol=1e-3)
    check_same([rows.mean(0) / np.linalg.norm(rows.mean(0)) for rows in got], TEXTS)
    pooled = post(server, "/pooling", input=TEXTS, task="token_embed", use_activation=False).json()
    assert [len(row["data"]) for row in pooled["data"]] == [len(rows) for rows in got]
    assert np.allclose(pooled["data"][1]["data"], got[1], atol=1e-4)
    assert post(server, "/embed_all", inputs=[]).status_code == 422
    assert post(server, "/embed_all", inputs=LONG).status_code == 413
    (one,) = post(server, "/embed_all", inputs=[[5, 6]]).json()
    assert np.array(one).shape == (2, 384)
