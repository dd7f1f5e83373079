"""Fetching linked images: real sockets, and every way in which a link could lead astray."""

import ipaddress
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from container.errors import InvalidParameter, PayloadTooLarge, ServingError, UnsupportedParameter
from container.frontend.clients.image_fetcher import ImageFetcher, is_public
from container.images.sources import ImageSource
from tests.support.pictures import file_of, random_picture
from tests.support.services.http_servers import in_background

PNG = file_of(random_picture(1))


class Site(ThreadingHTTPServer):
    """A server of images that remembers its requests: host and path."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.requested: list[tuple[str, str]] = []


class _Images(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Site)
        self.server.requested.append((self.headers["Host"], self.path))
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/")
            self.end_headers()
            return
        self.send_response(404 if self.path == "/none" else 200)
        self.end_headers()
        self.wfile.write(PNG)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    server = Site(("127.0.0.1", 0), _Images)
    with in_background(server):
        yield server


def _fetcher(**options: object) -> ImageFetcher:
    """One for which the tests' own machine is the internet."""
    allowed = {
        "max_bytes": 100_000,
        "resolve": lambda host, port: ["127.0.0.1"],
        "may_connect": lambda address: True,
    }
    return ImageFetcher(["images.example.com", "*.cdn.example.org"], **allowed | options)


def _link(site: Site, host: str = "images.example.com", path: str = "/a.png?b=1"):
    return ImageSource(f"http://{host}:{site.server_port}{path}", "messages[0]")


def test_an_image_comes_from_an_allowed_host(site: Site) -> None:
    assert _fetcher()(_link(site)) == PNG
    assert site.requested == [(f"images.example.com:{site.server_port}", "/a.png?b=1")]
    assert _fetcher()(_link(site, "a.b.cdn.example.org")) == PNG


@pytest.mark.parametrize(
    "host",
    ["example.com", "images.example.com.evil.org", "evilimages.example.com", "cdn.example.org",
     "evilcdn.example.org", "127.0.0.1", "[::1]"],
)  # fmt: skip
def test_other_hosts_are_refused_and_never_asked(site: Site, host: str) -> None:
    with pytest.raises(UnsupportedParameter, match="ALLOWED_IMAGE_DOMAINS") as caught:
        _fetcher()(_link(site, host))
    assert caught.value.field == "messages[0]"
    assert site.requested == []


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["10.0.0.1"], ["169.254.169.254"], ["::1"], ["fd00:ec2::254"], ["fe80::1"],
     ["::ffff:10.0.0.1"], ["64:ff9b::a00:1"], ["2002:a00:1::"], ["0.0.0.0"], ["224.0.0.1"],
     ["100.64.0.1"], ["93.184.215.14", "10.0.0.1"]],
)  # fmt: skip
def test_an_allowed_name_must_not_lead_inside(addresses: list[str]) -> None:
    fetch = _fetcher(resolve=lambda host, port: addresses, may_connect=is_public)
    with pytest.raises(UnsupportedParameter, match="not public"):
        fetch(ImageSource("https://images.example.com/", "f"))


def test_public_addresses_are_public() -> None:
    for address in ("93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"):
        assert is_public(ipaddress.ip_address(address))


def test_the_checked_address_is_the_one_connected_to(site: Site) -> None:
    resolved = iter([["127.0.0.1"], ["10.0.0.1"]])  # a name that changes its meaning
    assert _fetcher(resolve=lambda host, port: next(resolved))(_link(site)) == PNG
    assert next(resolved) == ["10.0.0.1"]


def test_redirects_are_not_followed(site: Site) -> None:
    with pytest.raises(InvalidParameter, match="302; redirects are not followed"):
        _fetcher()(_link(site, path="/elsewhere"))


def test_a_file_that_is_too_large_is_not_read_to_its_end(site: Site) -> None:
    with pytest.raises(PayloadTooLarge, match="MAX_IMAGE_FETCH_SIZE"):
        _fetcher(max_bytes=len(PNG) - 1)(_link(site))


def _no_host(host: str, port: int) -> list[str]:
    raise OSError("unknown")


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("ftp://images.example.com/a", {}, "data URL"),
        ("http://images.example.com:0/a", {}, "data URL"),
        ("http://images.example.com:x/a", {}, "data URL"),
        ("http:///a", {}, "data URL"),
        ("http://images.example.com/a\r\nX: y", {}, "data URL"),
        ("http://me:secret@images.example.com/a", {}, "password"),
        ("http://images.example.com/a", {"resolve": _no_host}, "there is no host"),
        ("http://images.example.com:1/a", {}, "failed"),
    ],
)
def test_a_bad_link_is_a_client_error(url: str, options: dict, message: str) -> None:
    with pytest.raises(ServingError, match=message):
        _fetcher(**options)(ImageSource(url, "f"))


def test_a_missing_image_is_a_client_error(site: Site) -> None:
    with pytest.raises(InvalidParameter, match="status 404"):
        _fetcher()(_link(site, path="/none"))
