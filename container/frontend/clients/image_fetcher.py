"""Fetches images that messages link to, from allowed hosts only; see SECURITY.md.

A link makes this server open a connection, so it is checked as one from an attacker: the host must
be allowed by name and every address of it must be public. The connection goes to the address that
was checked, even if the name resolves to another a moment later. Redirects are not followed.
"""

import ipaddress
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from urllib.parse import SplitResult, urlsplit

import certifi
import urllib3

from container.errors import InvalidParameter, PayloadTooLarge, UnsupportedParameter
from container.images.sources import ImageSource

WHOLE_S = 10.0  # for a whole image
STEP_S = 5.0  # to connect, and between two pieces
PIECE = 65_536
PORTS = {"http": 80, "https": 443}
# IPv4 addresses translated to IPv6 ones: their targets cannot be seen from the address.
TRANSLATED = [ipaddress.ip_network(name) for name in ("64:ff9b::/96", "64:ff9b:1::/48")]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[str]]


def is_public(address: Address) -> bool:
    """Whether an address is out in the internet, neither in this network nor a way back into it."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        leads_on = address.sixtofour or address.teredo or any(address in net for net in TRANSLATED)
        if leads_on:
            return False
    return address.is_global and not address.is_multicast


def resolve(host: str, port: int) -> list[str]:
    """All addresses of a host."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class ImageFetcher:
    """Fetches from some hosts. `domains` are names, or `*.name` for all below it."""

    def __init__(
        self,
        domains: Sequence[str],
        max_bytes: int,
        *,
        resolve: Resolve = resolve,
        may_connect: Callable[[Address], bool] = is_public,
    ) -> None:
        self._domains = domains
        self._max_bytes = max_bytes
        self._resolve = resolve
        self._may_connect = may_connect

    def __call__(self, source: ImageSource) -> bytes:
        """Fetch an image. Raises UnsupportedParameter, InvalidParameter or PayloadTooLarge."""
        link = self._checked(source)
        host, port = link.hostname or "", link.port or PORTS[link.scheme]
        address = self._address(host, port, source)
        try:
            with closing(_pool(link.scheme, host, address, port)) as pool:
                return self._read(pool, link, source)
        except urllib3.exceptions.HTTPError as error:
            raise InvalidParameter(
                f"`{source.field}`: fetching from {host} failed: {type(error).__name__}",
                field=source.field,
            ) from None

    def _checked(self, source: ImageSource) -> SplitResult:
        field = source.field
        try:
            link = urlsplit(source.url)
            is_link = link.scheme in PORTS and bool(link.hostname) and link.port != 0
        except ValueError:  # a port that is no port
            is_link = False
        if not is_link or not source.url.isascii() or not source.url.isprintable():
            raise InvalidParameter(
                f"`{field}` must be a data URL such as 'data:image/png;base64,...' or a link "
                "that begins with https:// or http://",
                field=field,
            )
        if link.username is not None or link.password is not None:
            raise InvalidParameter(f"`{field}`: a link must not have a password", field=field)
        if not self._is_allowed(link.hostname or ""):
            raise UnsupportedParameter(
                f"`{field}`: this server fetches no images from {link.hostname!r}; send a data "
                "URL, or have the host added to ALLOWED_IMAGE_DOMAINS",
                field=field,
            )
        return link

    def _is_allowed(self, host: str) -> bool:
        return any(
            host.endswith(domain[1:]) if domain.startswith("*.") else host == domain
            for domain in self._domains
        )

    def _address(self, host: str, port: int, source: ImageSource) -> str:
        try:
            addresses = self._resolve(host, port)
        except OSError:
            addresses = []
        if not addresses:
            raise InvalidParameter(
                f"`{source.field}`: there is no host {host!r}", field=source.field
            )
        if not all(self._may_connect(ipaddress.ip_address(address)) for address in addresses):
            raise UnsupportedParameter(
                f"`{source.field}`: {host} has an address that is not public", field=source.field
            )
        return addresses[0]

    def _read(
        self, pool: urllib3.HTTPConnectionPool, link: SplitResult, source: ImageSource
    ) -> bytes:
        deadline = time.monotonic() + WHOLE_S
        path = (link.path or "/") + (f"?{link.query}" if link.query else "")
        answer = pool.request(
            "GET",
            path,
            headers={"Host": link.netloc, "Accept": "image/*", "Accept-Encoding": "identity"},
            redirect=False,
            retries=False,
            preload_content=False,
        )
        if answer.status != 200:
            raise InvalidParameter(
                f"`{source.field}`: {link.hostname} answered with status {answer.status}"
                + ("; redirects are not followed" if 300 <= answer.status < 400 else ""),
                field=source.field,
            )
        data = bytearray()
        for piece in answer.stream(PIECE, decode_content=False):
            data += piece
            if len(data) > self._max_bytes:
                raise PayloadTooLarge(
                    f"`{source.field}`: the image has more than {self._max_bytes} bytes "
                    "(MAX_IMAGE_FETCH_SIZE)",
                    field=source.field,
                )
            if time.monotonic() > deadline:
                raise InvalidParameter(
                    f"`{source.field}`: fetching took longer than {WHOLE_S:.0f} s",
                    field=source.field,
                )
        return bytes(data)


def _pool(scheme: str, host: str, address: str, port: int) -> urllib3.HTTPConnectionPool:
    """Connections to one address; with TLS, the certificate must be the host's."""
    timeout = urllib3.Timeout(connect=STEP_S, read=STEP_S)
    if scheme == "http":
        return urllib3.HTTPConnectionPool(address, port, timeout=timeout)
    return urllib3.HTTPSConnectionPool(
        address,
        port,
        timeout=timeout,
        server_hostname=host,
        assert_hostname=host,
        ca_certs=certifi.where(),
    )
