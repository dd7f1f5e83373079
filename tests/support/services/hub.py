"""A stand-in for the Hub, which tests cannot reach: serves one folder as a repository."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.support.services.http_servers import in_background

SHA = "0123456789abcdef0123456789abcdef01234567"


class _Hub(ThreadingHTTPServer):
    folder: Path
    repository: str
    token: str | None
    asked: list[str]


class _Handler(BaseHTTPRequestHandler):
    server: _Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.asked.append(path)
        repository = self.server.repository
        if self.server.token and self.headers["Authorization"] != f"Bearer {self.server.token}":
            self._send(401, b"", {"X-Error-Code": "GatedRepo"}, with_body)
        elif path.startswith(f"api/models/{repository}/revision/"):
            self._send_json(self._info(), with_body)
        elif path.startswith(f"api/models/{repository}/tree/"):
            self._send_json(self._tree(), with_body)
        elif path.startswith(f"{repository}/resolve/"):
            name = path.split("/", 4)[4]
            content = (self.server.folder / name).read_bytes()
            etag = hashlib.sha1(content).hexdigest()
            self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": SHA}, with_body)
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, with_body)

    def _info(self) -> dict:
        siblings = [{"rfilename": name} for name in self._files()]
        return {"id": self.server.repository, "sha": SHA, "siblings": siblings, "private": False}

    def _files(self) -> dict[str, Path]:
        folder = self.server.folder
        return {
            path.relative_to(folder).as_posix(): path
            for path in folder.rglob("*")
            if path.is_file()
        }

    def _tree(self) -> list:
        return [
            {"type": "file", "path": name, "size": path.stat().st_size, "oid": "0" * 40}
            for name, path in self._files().items()
        ]

    def _send_json(self, body: object, with_body: bool) -> None:
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"}, with_body)

    def _send(self, status: int, body: bytes, headers: dict, with_body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@contextmanager
def hub(folder: Path, repository: str, token: str | None = None) -> Iterator[_Hub]:
    """Serve a folder as `repository` on a free port."""
    server = _Hub(("127.0.0.1", 0), _Handler)
    server.folder, server.repository, server.token, server.asked = folder, repository, token, []
    with in_background(server):
        yield server
