"""Serves the page's files, which are in this package; the page fetches nothing from elsewhere.

`/ui` is the page, and so is `/` for a browser. The files' links are relative, so that it also works
behind a proxy that adds a prefix.
"""

from functools import cache
from pathlib import Path

from flask import Blueprint, Response, abort, redirect, request
from werkzeug.wrappers import Response as AnyResponse

FOLDER = Path(__file__).parent / "static"
INDEX = "index.html"
# Named here, since the types that Python knows depend on the machine's files.
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types dompurify"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def blueprint() -> Blueprint:
    """Make the routes of the page and its files."""
    routes = Blueprint("ui", __name__)

    @routes.get("/ui")
    def page() -> Response:
        return _respond(INDEX)

    @routes.get("/ui/")
    def page_with_slash() -> AnyResponse:
        return redirect("../ui")  # the page's links are relative to the folder above

    @routes.get("/ui/<path:name>")
    def file(name: str) -> Response:
        return _respond(name)

    return routes


def index_for_browser() -> Response | None:
    """Return the page if the current request comes from a browser: it asks for HTML by name.

    Health checks ask for anything, or for nothing in particular: None for them.
    """
    accepted = {kind for kind, quality in request.accept_mimetypes if quality > 0}
    return _respond(INDEX) if "text/html" in accepted else None


def _respond(name: str) -> Response:
    content = _files().get(name)
    if content is None:
        abort(404)
    response = Response(content, content_type=TYPES[Path(name).suffix], headers=HEADERS)
    response.add_etag()
    response.make_conditional(request)
    return response


@cache
def _files() -> dict[str, bytes]:
    """Read all files once: a few hundred kilobytes, and no request can name another path."""
    return {
        path.relative_to(FOLDER).as_posix(): path.read_bytes()
        for path in FOLDER.rglob("*")
        if path.suffix in TYPES
    }
