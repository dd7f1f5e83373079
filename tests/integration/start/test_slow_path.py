"""A slow path is seen from outside: `/info`, the metric, the line at the end, and the refusal."""

import os
from pathlib import Path

import pytest
import requests

from container.errors import ExitCode
from tests.support.models import embedders
from tests.support.servers import READY_WITHIN_S, ROOT, serving, spawn, wait_for

# Python runs this in every process of the server.
BREAK_THE_KERNELS = """
from pathlib import Path
from container.model.kernels import build
build.library = lambda name: Path({path!r})
"""


# With AMX there would be two libraries to try.
ONE_LIBRARY = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}


@pytest.fixture
def broken_kernels(tmp_path: Path) -> str:
    """Folders for PYTHONPATH, by which the server's kernels are a file that is no library."""
    library = tmp_path / "kernels-broken.so"
    library.write_bytes(b"\x7fELF and no more")
    (tmp_path / "sitecustomize.py").write_text(BREAK_THE_KERNELS.format(path=os.fspath(library)))
    return f"{tmp_path}:{ROOT}"


def test_a_server_on_a_slow_path_says_so(broken_kernels: str, tmp_path: Path) -> None:
    folder = embedders.save_embedder(tmp_path, "bert")
    with serving(
        tmp_path / "log", PYTHONPATH=broken_kernels, EMBEDDING_MODEL_ID=os.fspath(folder),
        **ONE_LIBRARY,
    ) as server:  # fmt: skip
        info = requests.get(f"{server.url}/info", timeout=30).json()
        fallbacks = info["fallbacks"]
        assert info["not_proved"] == []
        for line, begin in zip(fallbacks, ("CPU kernels", "embedder: CPU kernels"), strict=True):
            assert line.startswith(f"{begin}: the library ")
            assert "kernels-broken.so" in line
            assert "layers run in PyTorch operations (slower); compile them" in line
            assert f"slow path: {line}" in server.log
        assert server.metric("engine_fallbacks") == 1
        assert server.metric("embedder_fallbacks") == 1
        line = f"supervisor: serving on a slow path: {fallbacks[0]}; {fallbacks[1]}"
        wait_for(lambda: line in server.log, READY_WITHIN_S, lambda: server.log)
        assert requests.post(f"{server.url}/generate", json={"inputs": "Hi"}, timeout=60).ok


def test_a_slow_path_is_refused_where_the_fast_one_is_required(
    broken_kernels: str, tmp_path: Path
) -> None:
    server = spawn(tmp_path / "log", PYTHONPATH=broken_kernels, REQUIRE_FAST_PATH="1")
    try:
        assert server.process.wait(READY_WITHIN_S) == ExitCode.WRONG_SETTINGS
    finally:
        server.process.kill()
    reason = "REQUIRE_FAST_PATH is set, but this is a slow path: CPU kernels: the library "
    assert reason in server.log
    assert "kernels-broken.so" in server.log
