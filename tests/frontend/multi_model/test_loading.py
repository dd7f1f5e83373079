"""Loads of models that come at the same time, do not fit together, or have impossible names."""

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from container.errors import (
    Conflict,
    InvalidParameter,
    MalformedRequest,
    NotEnoughMemory,
    NotFound,
    Unavailable,
)
from container.frontend.multi_model.model_server import ModelServer
from container.frontend.multi_model.process_per_model import OVERHEAD_BYTES, Models


class SlowStart:
    """Starts no server: waits in its place until it is released, then fails."""

    def __init__(self) -> None:
        self.has_begun = threading.Semaphore(0)
        self.is_released = threading.Event()

    def __call__(self, name: str, url: str, environ: Mapping[str, str]) -> ModelServer:
        self.has_begun.release()
        assert self.is_released.wait(10)
        raise Unavailable("released")


def _models(start: SlowStart, free_bytes: int = 2**60) -> Models:
    return Models({}, free_memory=lambda: free_bytes, load_timeout_s=1, drain_s=1, start=start)


def test_a_model_that_is_being_loaded_is_not_loaded_twice(tmp_path: Path) -> None:
    start = SlowStart()
    models = _models(start)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(models.load, "a", str(tmp_path))
        start.has_begun.acquire()
        with pytest.raises(Conflict):
            models.load("a", str(tmp_path))
        with pytest.raises(NotFound, match="loaded are: none"):
            models.find("a")
        start.is_released.set()
        with pytest.raises(Unavailable):
            first.result()
    with pytest.raises(Unavailable):  # the name is free again
        models.load("a", str(tmp_path))


def test_models_loaded_at_a_time_share_the_free_memory(tmp_path: Path) -> None:
    start = SlowStart()
    models = _models(start, free_bytes=OVERHEAD_BYTES * 3 // 2)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(models.load, "a", str(tmp_path))
        start.has_begun.acquire()
        with pytest.raises(NotEnoughMemory):
            models.load("b", str(tmp_path))
        start.is_released.set()
        with pytest.raises(Unavailable):
            first.result()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "a\nb", "a\0", "\u202ea", "x" * 257])
def test_a_name_that_no_path_can_hold_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter) as refused:
        _models(SlowStart()).load(name, str(tmp_path))
    assert refused.value.field == "model_name"


def test_errors_do_not_repeat_long_names() -> None:
    models = _models(SlowStart())
    with pytest.raises(NotFound) as unknown:
        models.find("x" * 10_000)
    with pytest.raises(MalformedRequest) as nowhere:
        models.load("a", "x" * 10_000)
    assert max(len(str(unknown.value)), len(str(nowhere.value))) < 1000
