"""Folders by name, files that survive a full disk, and no link among the tracked files."""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from container.files import find_folder, find_special, read_json, write_atomically

ROOT = Path(__file__).parents[1]


def test_a_folder_is_found_by_its_name(tmp_path: Path) -> None:
    assert find_folder(str(tmp_path)) == tmp_path
    assert find_folder("~") == Path.home()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x" * 5000,
        "a/" * 3000,
        "~nosuchuser/x",
        "zero\0byte",
        "/etc/passwd",
        "/no/such",
        "\udc80",
    ],
    ids=lambda name: repr(name)[:20],
)
def test_any_other_name_is_no_folder(name: str) -> None:
    assert find_folder(name) is None


def test_a_folder_without_permission_is_no_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o000)
    try:
        if not os.access(tmp_path, os.R_OK):  # root may read everything
            assert find_folder(str(tmp_path)) is None
    finally:
        tmp_path.chmod(0o700)


def test_a_missing_file_is_told_from_an_unreadable_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "missing.json")
    with pytest.raises(OSError, match="is a folder") as unreadable:
        read_json(tmp_path)
    assert not isinstance(unreadable.value, FileNotFoundError)


def test_only_pipes_among_user_codes_data_are_refused(tmp_path: Path) -> None:
    for name in ("vocab.txt", "sentences.json", "video_index.json"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**40)
    (tmp_path / "index.bin").symlink_to("nothing")
    (tmp_path / "secret.json").touch(mode=0)
    (tmp_path / "config.json").mkdir()
    (tmp_path / "code").mkdir()
    os.mkfifo(tmp_path / "code" / "control.json")
    assert find_special(tmp_path) is None
    (tmp_path / "deep").mkdir()
    os.mkfifo(tmp_path / "deep" / "model.json")
    assert f"{tmp_path}/deep/model.json is a pipe" in (find_special(tmp_path) or "")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new" * 1000)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    write_atomically(path, "new")
    assert path.read_text() == "new"


def test_no_symbolic_link_is_tracked() -> None:
    """One in a checkout may point to another machine's files, such as a virtual environment."""
    command = ["git", "-C", str(ROOT), "ls-files", "--stage"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    modes = [line.split(maxsplit=3) for line in result.stdout.splitlines()]
    assert [name for mode, _, _, name in modes if mode == "120000"] == []
