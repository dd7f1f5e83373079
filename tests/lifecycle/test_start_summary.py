"""The summary of a start at a terminal, without a server; tests/integration/server has one."""

import re
import subprocess
import sys

import pytest

from container.lifecycle.terminal import StageLine, UsedMemory, example, share_of, summary
from container.logs import CLEAR_LINE, is_for_person

BASE = "http://localhost:8080"
ENGINE = {
    "model_id": "org/m", "model_dtype": "bfloat16", "model_device_type": "cpu", "cpu": "avx2",
    "attention": "paged", "fallbacks": [], "quantize": "int8", "max_total_tokens": 2048,
    "max_batch_total_tokens": 65536,
}  # fmt: skip
EMBEDDER = {
    "model_id": "org/e", "model_dtype": "float32", "model_device_type": "cpu",
    "model_type": {"embedding": {"width": 384}},
}  # fmt: skip


def _text(info: dict, *, has_ui: bool = True) -> str:
    text = summary(BASE, info, 4096, UsedMemory(3 * 2**29), 2**33, has_ui=has_ui)
    return re.sub(r"\033\[\d*m", "", text)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("loading weights as float32 on cpu: 40 %", 0.4),
        ("downloading org/m: 7 % of 3.40 GB", 0.07),
        ("warming up", None),
        ("looking for ./90 %", None),
    ],
)
def test_the_share_of_a_stage_is_read_from_its_text(stage: str, expected: float | None) -> None:
    assert share_of(stage) == expected


def test_a_stage_is_one_line_that_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    line = StageLine()
    line.show(f"loading {'x' * 100}: 50 %")
    line.clear()
    written = capsys.readouterr().err
    assert "\n" not in written
    assert written.endswith(CLEAR_LINE)
    assert max(len(part) for part in re.split(r"\r|\033\[K", written)) < 40


def test_a_bar_shows_the_share(capsys: pytest.CaptureFixture[str]) -> None:
    StageLine().show("loading weights: 50 %")
    assert "[############............]" in capsys.readouterr().err


def test_a_language_model_is_summed_up() -> None:
    text = _text(ENGINE)
    parts = [
        "org/m", "bfloat16, int8 on cpu (avx2 kernels)", "4,096 blocks", "65,536 tokens",
        "2,048 tokens", "1.5 GiB", "8.0 GiB", f"{BASE}/ui", f"container chat {BASE}", "curl",
    ]  # fmt: skip
    assert [part for part in parts if part not in text] == []
    assert "Slow path" not in text


SHARED_PAGES = """
import os
from container.lifecycle.announcement import used_memory

shared, alone = bytearray(b"x" * 2**27), used_memory()
reader, writer = os.pipe()
for _ in range(3):
    if os.fork() == 0:
        os.close(writer)
        os.read(reader, 1)  # until the parent ends
        os._exit(0)
together = used_memory()
print(together.is_upper_bound or together.num_bytes - alone.num_bytes < 2**27)
"""


def test_shared_pages_count_once_or_the_sum_is_a_bound() -> None:
    command = [sys.executable, "-c", SHARED_PAGES]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "True\n"
    assert str(UsedMemory(2**30)) == "1.0 GiB in use"
    assert str(UsedMemory(2**30, is_upper_bound=True)) == "at most 1.0 GiB in use"


def test_slow_paths_say_where_they_are_explained() -> None:
    text = _text(ENGINE | {"attention": "own", "fallbacks": ["requests run one after another"]})
    assert "Slow path   requests run one after another" in text
    assert "docs/models.md" in text
    assert "one request after another" in text
    assert "blocks" not in text


def test_an_embedding_model_is_no_partner_for_a_chat() -> None:
    text = _text(EMBEDDER)
    assert "embedding model" in text
    assert "container chat" not in text
    assert '"inputs"' in example(BASE, EMBEDDER)


def test_without_info_and_page_there_is_the_address() -> None:
    text = _text({}, has_ui=False)
    assert BASE in text
    assert "/ui" not in text


def test_no_person_reads_json_or_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_for_person(json_output=None)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert is_for_person(json_output=None)
    assert not is_for_person(json_output=True)
    monkeypatch.setenv("TERM", "dumb")
    assert not is_for_person(json_output=None)
