"""Which texts the next batch takes."""

from dataclasses import dataclass

from container.embedding.text_queue import TextQueue


@dataclass(frozen=True)
class Words:
    name: str
    num_tokens: int


def queue(budget: int, **requests: list[int]) -> TextQueue[Words, str]:
    text_queue: TextQueue[Words, str] = TextQueue(budget)
    for number, (name, lengths) in enumerate(requests.items()):
        texts = [Words(f"{name}{index}", length) for index, length in enumerate(lengths)]
        text_queue.add((b"frontend", number), texts)
    return text_queue


def names(texts: TextQueue[Words, str]) -> list[str]:
    return [taken.text.name for taken in texts.next_batch()]


def test_a_batch_is_bounded_by_tokens() -> None:
    waiting = queue(10, a=[4], b=[4], c=[4])
    assert names(waiting) == ["a0", "b0"]
    assert names(waiting) == ["c0"]
    assert names(waiting) == []


def test_a_text_longer_than_the_budget_is_a_batch_alone() -> None:
    waiting = queue(10, a=[50], b=[3])
    assert [names(waiting), names(waiting)] == [["a0"], ["b0"]]


def test_requests_share_batches_round_robin() -> None:
    waiting = queue(6, big=[2] * 9, small=[2])
    assert names(waiting) == ["big0", "small0", "big1"]
    assert names(waiting) == ["big2", "big3", "big4"]
    waiting.add((b"other", 1), [Words("late0", 2)])
    assert names(waiting) == ["big5", "late0", "big6"]


def test_a_request_completes_with_its_last_text_in_order() -> None:
    waiting = queue(4, a=[2, 2, 2])
    first, second = waiting.next_batch(), waiting.next_batch()
    assert waiting.finish(first, ["r0", "r1"]) == []
    (job,) = waiting.finish(second, ["r2"])
    assert (job.results, job.num_tokens, len(waiting)) == (["r0", "r1", "r2"], 6, 0)


def test_an_aborted_request_leaves_no_texts_and_gets_no_answer() -> None:
    waiting = queue(4, a=[2, 2, 2], b=[1])
    batch = waiting.next_batch()
    assert waiting.remove((b"frontend", 0))
    assert not waiting.remove((b"frontend", 0))
    finished = waiting.finish(batch, [taken.text.name for taken in batch])
    assert [job.key for job in finished] == [(b"frontend", 1)]
    assert (waiting.num_waiting, len(waiting), names(waiting)) == (0, 0, [])
