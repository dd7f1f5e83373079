"""Sticky sessions as files, on a disk that takes them and on one that does not."""

from pathlib import Path

import pytest

from container.errors import MalformedRequest, Overloaded, Unavailable
from container.frontend.generation.sessions import Sessions


def test_a_session_is_open_until_it_ends(tmp_path: Path) -> None:
    now = 1000.0
    sessions = Sessions(tmp_path / "sessions", 60, lambda: now)
    session = sessions.open()
    assert sessions.find(session.id).remaining_s() == 60
    now = 1061.0
    with pytest.raises(MalformedRequest):
        sessions.find(session.id)
    sessions.open()
    assert len(list((tmp_path / "sessions").iterdir())) == 1, "the ended one is still there"


def test_a_session_whose_file_cannot_be_written_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sessions").write_text("not a folder")
    with pytest.raises(Unavailable, match="disk"):
        Sessions(tmp_path / "sessions", 60).open()
    assert "sessions" in caplog.text


def test_open_sessions_are_bounded_and_ended_ones_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container.frontend.generation.sessions.MAX_OPEN", 3)
    now = 1000.0
    sessions = Sessions(tmp_path, 60, lambda: now)
    for _ in range(3):
        sessions.open()
    with pytest.raises(Overloaded, match="SAGEMAKER_SESSIONS_EXPIRATION") as caught:
        sessions.open()
    assert caught.value.retry_after_s is not None
    now = 1061.0
    assert sessions.open().remaining_s() == 60


def test_ended_sessions_make_room_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("container.frontend.generation.sessions.MAX_OPEN", 3)
    now, num_sweeps = 1000.0, 0
    sessions = Sessions(tmp_path, 60, lambda: now)
    sweep = sessions._sweep

    def count(folder: Path) -> None:
        nonlocal num_sweeps
        num_sweeps += 1
        sweep(folder)

    monkeypatch.setattr(sessions, "_sweep", count)
    for _ in range(3):
        sessions.open()
    now = 1055.0
    for _ in range(5):
        with pytest.raises(Overloaded):
            sessions.open()
    assert num_sweeps <= 2
    now = 1061.0
    sessions.open()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("text", ["", "soon", "\0"])
def test_a_damaged_file_is_no_session(tmp_path: Path, text: str) -> None:
    (tmp_path / "abc").write_text(text)
    with pytest.raises(MalformedRequest):
        Sessions(tmp_path, 60).find("abc")
