"""The embedder's worker over a model that measures words."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from container.embedding.process import EmbedderBackend, EmbedderLimits, TextRows
from container.errors import InvalidParameter, Overloaded, PromptTooLong
from container.messages.common import Abort
from container.messages.embedder import Embed, Embedded, EmbedderInfo

INFO = EmbedderInfo(
    model_id="m", model_sha=None, model_type="t", kind="embedding", dtype="float32", device="cpu",
    width=1, vocabulary=9, max_input_tokens=5, is_normalized=False, labels=[], prompts=[],
)  # fmt: skip


@dataclass(frozen=True)
class Words:
    num_tokens: int


class Counter:
    """A text's only number is its length; more than five words are too many."""

    def encode(self, request: Embed) -> list[Words]:
        texts = [Words(len(str(text).split())) for text in request.inputs]
        if any(text.num_tokens > 5 for text in texts):
            raise PromptTooLong("too long")
        return texts

    def run(self, texts: Sequence[Words]) -> list[TextRows]:
        return [TextRows(struct.pack("<f", text.num_tokens), 1) for text in texts]


@pytest.fixture
def worker() -> EmbedderBackend[Words]:
    return EmbedderBackend(Counter(), INFO, EmbedderLimits(max_batch_tokens=4, max_requests=2))


def test_one_answer_comes_when_all_texts_are_done(worker: EmbedderBackend[Words]) -> None:
    worker.take(b"f", Embed(1, ["a b c", "a", "a b"]))
    assert list(worker.step()) == []
    ((frontend_id, answer),) = worker.step()
    assert (frontend_id, answer) == (b"f", Embedded(1, struct.pack("<3f", 3, 1, 2), 1, 6))
    assert not worker.has_work
    assert (worker.load.batches, worker.load.texts, worker.load.tokens) == (2, 3, 6)


def test_the_same_number_from_two_frontends_is_two_requests(worker: EmbedderBackend[Words]) -> None:
    worker.take(b"f", Embed(1, ["a"]))
    worker.take(b"g", Embed(1, ["a b"]))
    outcomes: dict[bytes, Any] = dict(worker.step())
    assert {
        frontend_id: struct.unpack("<f", embedded.rows)
        for frontend_id, embedded in outcomes.items()
    } == {
        b"f": (1.0,),
        b"g": (2.0,),
    }


def test_requests_are_refused_at_the_door(worker: EmbedderBackend[Words]) -> None:
    with pytest.raises(InvalidParameter, match="`inputs` must not be empty"):
        worker.take(b"f", Embed(1, []))
    with pytest.raises(PromptTooLong):
        worker.take(b"f", Embed(1, ["a b c d e f"]))
    assert not worker.has_work
    worker.take(b"f", Embed(2, ["a"]))
    worker.take(b"f", Embed(3, ["a"]))
    with pytest.raises(Overloaded, match="MAX_CONCURRENT_REQUESTS"):
        worker.take(b"f", Embed(4, ["a"]))


def test_aborts_forget_one_request_or_a_frontend(worker: EmbedderBackend[Words]) -> None:
    worker.take(b"f", Embed(1, ["a"]))
    worker.take(b"g", Embed(1, ["a"]))
    worker.take(b"f", Abort(1))
    worker.take(b"f", Abort(7))
    assert worker.abort_all(b"f") == []
    assert worker.abort_all() == [(b"g", 1)]
    assert not worker.has_work


class Poisonable(Counter):
    """Fails every batch with a text of three words."""

    def __init__(self) -> None:
        self.is_broken = False

    def run(self, texts: Sequence[Words]) -> list[TextRows]:
        if self.is_broken or any(text.num_tokens == 3 for text in texts):
            raise RuntimeError("injected")
        return super().run(texts)


def _outcomes(worker: EmbedderBackend[Words]) -> dict[int, bool]:
    """Run all requests; say which were answered and which failed."""
    outcomes: dict[int, bool] = {}
    for _ in range(100):
        if not worker.has_work:
            return outcomes
        try:
            results: list[Any] = [result for _, result in worker.step()]
            outcomes |= {result.request_id: isinstance(result, Embedded) for result in results}
        except RuntimeError:
            worker.recover()
    raise AssertionError("the embedder makes no progress")


def test_a_text_that_fails_its_batch_fails_its_request_only() -> None:
    limits = EmbedderLimits(max_batch_tokens=100, max_requests=20)
    worker = EmbedderBackend(Poisonable(), INFO, limits)
    for number in range(9):
        worker.take(b"f", Embed(number, ["a b", "a b c" if number in (2, 5) else "a"]))
    assert _outcomes(worker) == {number: number not in (2, 5) for number in range(9)}


def test_an_embedder_that_fails_its_self_test_exits() -> None:
    model = Poisonable()
    worker = EmbedderBackend(model, INFO, EmbedderLimits(max_batch_tokens=100, max_requests=20))
    worker.take(b"f", Embed(1, ["a"]))
    model.is_broken = True
    with pytest.raises(RuntimeError):
        _outcomes(worker)
