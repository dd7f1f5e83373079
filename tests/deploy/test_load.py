import threading

from sagemaker_deploy import load
from sagemaker_deploy.errors import InvocationFailed
from sagemaker_deploy.load import Sample


def test_requests_are_sent_once_by_at_most_n_clients() -> None:
    running, most, lock = 0, 0, threading.Lock()
    gate = threading.Barrier(3)

    def send() -> Sample:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.wait(5)  # all three clients are in at once, or this breaks
        with lock:
            running -= 1
        return Sample(1.0, 0.5, 10)

    samples, _ = load.run(send, clients=3, requests=9)
    assert (len(samples), most) == (9, 3)


def test_the_picture_counts_failures_apart() -> None:
    samples = [Sample(float(n), 0.1, 10) for n in range(1, 101)] + [Sample(9.0, 0.0, 0, "gone")]
    summarize = load.summarize(samples, 4, 10.0)
    assert summarize.failed == 1
    assert summarize.errors == {"gone": 1}
    assert summarize.latency_s == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}
    assert summarize.requests_per_s == 10.0
    assert summarize.tokens_per_s == 100.0


def test_without_answers_there_are_no_percentiles() -> None:
    assert load.summarize([Sample(1.0, 0.0, 0, "gone")], 1, 1.0).latency_s == {}


def test_the_histogram_counts_every_value() -> None:
    lines = load.histogram([0.1, 0.1, 0.5, 1.0], buckets=3)
    assert [int(line.split()[-1]) for line in lines] == [2, 1, 1]
    assert load.histogram([2.0])[0].split()[-1] == "1"


def test_a_refused_request_is_a_sample_with_its_reason() -> None:
    def call() -> bytes:
        raise InvocationFailed("chat answered 429: overloaded\nmore")

    assert load.whole(call).error == "chat answered 429: overloaded"


def test_tokens_are_counted_by_usage() -> None:
    assert load.counted(b'{"usage": {"completion_tokens": 7}}') == 7
    assert load.counted(b'[{"details": {"generated_tokens": 3}}]') == 3
    assert load.counted(b"text") == 0
