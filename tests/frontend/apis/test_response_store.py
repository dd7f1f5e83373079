"""The store of responses: shared by frontends, bounded, and safe against odd ids."""

import os
from pathlib import Path

import pytest

from container.errors import NotFound
from container.frontend.apis.openai.responses.store import ResponseStore, StoredResponse


def _id(number: int) -> str:
    return f"resp_{number:032x}"


def _stored(text: str = "hello") -> StoredResponse:
    return StoredResponse({"output": text}, [{"role": "user", "content": text}])


def _save(store: ResponseStore, folder: Path, *numbers: int, text: str = "hello") -> None:
    for number in numbers:
        store.save(_id(number), _stored(text))
        os.utime(folder / _id(number), (number, number))  # in their order, however fast


def _known(store: ResponseStore, count: int) -> list[int]:
    known = []
    for number in range(count):
        try:
            store.find(_id(number), "id")
        except NotFound:
            continue
        known.append(number)
    return known


def test_one_frontend_finds_what_another_stored(tmp_path: Path) -> None:
    ResponseStore(tmp_path / "a", 5).save(_id(1), _stored())
    other = ResponseStore(tmp_path / "a", 5)
    assert other.find(_id(1), "id") == _stored()
    other.delete(_id(1), "id")
    for act in (other.find, other.delete):
        with pytest.raises(NotFound, match="not stored"):
            act(_id(1), "id")


def test_the_oldest_are_dropped(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path, 3)
    _save(store, tmp_path, 0, 1, 2, 3)
    store.save(_id(4), _stored())
    assert _known(store, 5) == [2, 3, 4]


def test_their_bytes_are_bounded(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path, 100, max_bytes=1000)
    _save(store, tmp_path, 0, 1, 2, 3, text="x" * 150)
    store.save(_id(4), _stored("x" * 150))
    assert _known(store, 5) == [3, 4]
    store.save(_id(5), _stored("x" * 2000))
    assert _known(store, 6) == [3, 4]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["", "..", "resp_..", "../resp_1234567890", "resp_XYZ", "a" * 9])
def test_other_ids_are_never_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFound) as refused:
        ResponseStore(tmp_path / "a", 5).find(name, "response_id")
    assert refused.value.field == "response_id"


def test_a_limit_of_zero_stores_nothing(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path, 0)
    assert not store.is_on
    store.save(_id(1), _stored())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_fails_no_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    ResponseStore(tmp_path / "file", 5).save(_id(1), _stored())
    assert "was not stored" in caplog.text
