"""The record of adapters, by which a restarted engine knows them again."""

from pathlib import Path

import pytest

from container.model.lora.manager import LoraManager
from container.model.lora.record import AdapterRecord
from tests.support.torch_engines import adapters_of, torch_engine


def test_a_restarted_engine_knows_the_adapters_again(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    record = AdapterRecord(tmp_path / "adapters.json")
    first = _recording(record)
    first.add_now("small", str(folders["small"]))
    first.add_now("pinned", str(folders["rooted"]), pin=True)
    again = _recording(record)
    assert [(one.name, one.is_pinned) for one in again.infos()] == [
        ("small", False),
        ("pinned", True),
    ]


@pytest.mark.parametrize(
    "text",
    ["", "[", '[["small", "/no', "{}", "[1]", "[[]]", "null", '[["gone", "/none", true]]'],
)
def test_a_damaged_adapter_record_does_not_end_the_start(
    folders: dict[str, Path], tmp_path: Path, text: str
) -> None:
    (tmp_path / "adapters.json").write_text(text)
    store = _recording(AdapterRecord(tmp_path / "adapters.json"))
    assert store.infos() == []
    store.add_now("small", str(folders["small"]))
    assert "small" in (tmp_path / "adapters.json").read_text()


def test_a_record_that_cannot_be_written_refuses_no_adapter(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = _recording(AdapterRecord(tmp_path / "no folder" / "adapters.json"))
    store.add_now("small", str(folders["small"]))
    assert [info.name for info in store.infos()] == ["small"]
    assert "cannot be written (No such file" in caplog.text


def _recording(record: AdapterRecord) -> LoraManager:
    layers = adapters_of(torch_engine("llama")).lora_layers
    store = LoraManager(layers, 8, record)
    store.start_recording()
    return store
