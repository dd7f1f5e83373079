"""Links in model folders: those of the Hub's cache are fine, others stay inside."""

import os
from pathlib import Path

import pytest

from container.settings.process_env import outward_links


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model" / "sub").mkdir(parents=True)
    (tmp_path / "model" / "config.json").touch()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").touch()
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("link", "target", "is_outward"),
    [
        ("a.json", "config.json", False),
        ("sub/a.json", "../config.json", False),
        ("a.json", "../secret/file", True),
        ("a.json", "/etc/passwd", True),
        ("a.json", "../model-2/file", True),
        ("a.json", "nowhere", False),
        ("a.json", "../nowhere", True),
        ("a.json", "sub/../../secret/file", True),
        ("sub/dir", "../../secret", True),
        ("a.json", "a.json", False),
        ("code", "../secret", False),
        ("sub/code", "../../secret", True),
    ],
)
def test_links(folder: Path, link: str, target: str, is_outward: bool) -> None:
    (folder / link).symlink_to(target)
    assert outward_links(folder) == ([folder / link] if is_outward else [])


def test_a_chain_of_links_counts_by_its_end(folder: Path) -> None:
    (folder / "b.json").symlink_to("../secret/file")
    (folder / "a.json").symlink_to("b.json")
    assert set(outward_links(folder)) == {folder / "a.json", folder / "b.json"}


def test_what_may_not_be_looked_at_counts_as_a_link(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Path) -> bool:
        raise PermissionError(path)

    monkeypatch.setattr(Path, "is_symlink", forbidden)  # as of /proc/1/cwd
    assert outward_links(folder) == []  # they lead to themselves
    monkeypatch.setattr(os, "readlink", forbidden)
    (folder / "a.json").symlink_to("config.json")
    assert outward_links(folder) == [folder / "a.json"]


def test_the_folder_itself_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    (folder / "a.json").symlink_to("config.json")
    assert outward_links(tmp_path / "link") == []


def test_a_snapshot_of_the_hub_links_to_its_own_blobs(tmp_path: Path) -> None:
    for name in ("models--a--b", "models--c--d"):
        (tmp_path / name / "blobs").mkdir(parents=True)
        (tmp_path / name / "blobs" / "123").touch()
    snapshot = tmp_path / "models--a--b" / "snapshots" / "main"
    (snapshot / "sub").mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/123")
    (snapshot / "sub" / "x.json").symlink_to("../../../blobs/123")
    assert outward_links(snapshot) == []
    (snapshot / "y.json").symlink_to("../../../models--c--d/blobs/123")
    assert outward_links(snapshot) == [snapshot / "y.json"]
