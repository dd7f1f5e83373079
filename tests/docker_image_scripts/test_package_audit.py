"""image/audit/packages.py: locked packages with known vulnerabilities end a build."""

import json
from collections.abc import Iterator
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from image.audit import packages
from image.audit.packages import NotAudited, Release, locked, refusals, vulnerabilities
from tests.support.services.http_servers import in_background

TODAY = date(2026, 11, 20)
FOUND = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fixed_in": ["2.1"], "withdrawn": None}
INDEX = {
    "/bad/1.0/json": [FOUND],
    "/good/2.0/json": [],
    "/old/1.0/json": [FOUND | {"withdrawn": "x"}],
}


class _Index(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = INDEX.get(self.path)
        self.send_response(404 if known is None else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"vulnerabilities": known}).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def index() -> Iterator[str]:
    with in_background(HTTPServer(("127.0.0.1", 0), _Index)) as server:
        yield f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: str) -> Path:
    monkeypatch.setattr(packages, "LOCKS", tmp_path)
    monkeypatch.setenv("PACKAGE_INDEX", index)
    monkeypatch.delenv("AUDIT", raising=False)
    return tmp_path / "server.lock"


def test_every_lock_is_read_without_hashes_and_local_versions() -> None:
    releases = locked(packages.LOCKS)
    assert {"flask", "gunicorn", "torch"} <= {release.name for release in releases}
    assert not any("+" in release.version for release in releases)
    assert len(set(releases)) == len(releases)


def test_a_vulnerability_ends_the_build_and_names_the_fix(locks: Path, capsys) -> None:
    locks.write_text("bad==1.0 \\\n    --hash=sha256:00\ngood==2.0\nold==1.0\n")
    assert packages.main() == 1
    assert "bad 1.0: PYSEC-1, CVE-1; fixed in 2.1" in capsys.readouterr().err


def test_packages_without_a_vulnerability_pass(locks: Path, capsys) -> None:
    locks.write_text("good==2.0\nold==1.0+cpu\n")
    assert packages.main() == 0
    assert "2 locked packages audited" in capsys.readouterr().err


@pytest.mark.parametrize(("required", "code"), [("", 0), ("required", 1)])
def test_packages_that_were_not_audited_are_named(
    locks: Path, capsys, monkeypatch: pytest.MonkeyPatch, required: str, code: int
) -> None:
    monkeypatch.setenv("AUDIT", required)
    locks.write_text("good==2.0\nstrange==1.0\nthere==1.0\n")
    assert packages.main() == code
    error = capsys.readouterr().err
    assert "NOT AUDITED: 2 of 3 locked packages" in error
    assert "/strange/1.0/json" in error


def test_an_index_that_cannot_be_reached_is_named() -> None:
    with pytest.raises(NotAudited, match=r"http://127\.0\.0\.1:9/a/1/json"):
        vulnerabilities("http://127.0.0.1:9", Release("a", "1"))


@pytest.mark.parametrize("name", ["PYSEC-1", "CVE-1"])
def test_an_accepted_vulnerability_passes_until_its_last_day(name: str) -> None:
    release = Release("bad", "1.0")
    accepted = {name: {"reason": "never called", "until": TODAY}}
    assert not list(refusals(release, [FOUND], accepted, TODAY))
    (late,) = refusals(release, [FOUND], accepted, TODAY + timedelta(days=1))
    assert "was accepted until 2026-11-20" in late
