"""A part of `make chaos`: a short soak, and a rolling restart."""

from pathlib import Path

import pytest

from benchmarks.chaos.balancer import rolling_restart
from benchmarks.chaos.soak import soak

SOAK_S = 15.0


@pytest.mark.slow
def test_a_soak_leaves_nothing_behind(endless_model: Path, tmp_path: Path) -> None:
    row = soak(endless_model, tmp_path, SOAK_S)
    assert row.is_sound, row
    assert "blocks" not in row.leaked, row
    assert "503" not in row.ping, row


@pytest.mark.slow
def test_no_request_fails_in_a_rolling_restart(endless_model: Path, tmp_path: Path) -> None:
    row = rolling_restart(endless_model, tmp_path)
    assert row.is_sound, row
    assert row.leaked == "0", row
    assert "503" not in row.ping, row
