"""The bars of libraries become stages, and draw nothing."""

import pytest
from transformers.utils import logging as transformers_logging

from container.model import progress_bars
from container.model.progress_bars import disable_progress_bars, download_bar, followed_loading


@pytest.fixture(autouse=True)
def _reports_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bars, "EVERY_S", 0.0)


def test_loading_reports_its_share(capfd: pytest.CaptureFixture[str]) -> None:
    stages: list[str] = []
    disable_progress_bars()
    with followed_loading(stages.append, "loading"):
        items = transformers_logging.tqdm(range(4), desc="Loading weights", mininterval=0)
        assert list(items) == [0, 1, 2, 3]
    assert "loading: 50 %" in stages
    assert all(stage.startswith("loading: ") for stage in stages)
    assert capfd.readouterr() == ("", "")


def test_afterwards_bars_are_as_before() -> None:
    stages: list[str] = []
    with followed_loading(stages.append, "loading"):
        pass
    list(transformers_logging.tqdm(range(4), mininterval=0))
    assert stages == []


def test_a_download_reports_bytes_and_not_files(capfd: pytest.CaptureFixture[str]) -> None:
    stages: list[str] = []
    bar_class = download_bar(stages.append, "downloading m")
    list(bar_class(range(3), desc="Fetching 3 files", mininterval=0))
    assert stages == []
    with bar_class(total=0, unit="B", unit_scale=True, mininterval=0, name="hub") as bar:
        bar.total = 2_000_000_000
        bar.update(500_000_000)
    assert stages[-1] == "downloading m: 25 % of 2.00 GB"
    assert capfd.readouterr() == ("", "")
