"""Checks who may use the proxy: owners of its keys, or, without keys, this machine's programs."""

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from sagemaker_deploy.errors import ConfigError


class Keys:
    """The hashes of the keys, and their owners' names."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._names = {_digest(key): name for name, key in keys.items()}

    def __bool__(self) -> bool:
        return bool(self._names)

    def owner(self, headers: Mapping[str, str]) -> str | None:
        """Return the owner of a request's key, or None if it has no valid one."""
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = _digest(key)
        owners = [name for known, name in self._names.items() if hmac.compare_digest(known, digest)]
        return owners[0] if owners else None


def read_keys(path: Path | None) -> Keys:
    """Read keys from a file of lines NAME=KEY. Raises ConfigError."""
    if path is not None and not path.is_file():
        raise ConfigError([f"--keys {path}: no such file"])
    lines = path.read_text().splitlines() if path else []
    texts = [line.strip() for line in lines]
    keys = {}
    for number, text in enumerate(text for text in texts if text and not text.startswith("#")):
        name, equals, key = text.partition("=")
        if not equals or not name.strip() or len(key.strip()) < 8:
            raise ConfigError([f"key {number + 1}: must be NAME=KEY, with 8 characters or more"])
        keys[name.strip()] = key.strip()
    return Keys(keys)


def check_host(host: str, keys: Keys) -> None:
    """Refuse to serve other machines without keys. Raises ConfigError."""
    if not keys and not is_loopback(host):
        raise ConfigError(
            [f"--host {host}: other machines reach this address; give --keys, or use 127.0.0.1"]
        )


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine's own."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_foreign(headers: Mapping[str, str]) -> bool:
    """Return whether a request comes from another site's page, or is for another host name.

    Without keys, no web page may send requests that the owner pays for.
    """
    origin = headers.get("Origin")
    if not is_loopback(_hostname(f"//{headers.get('Host', '')}")):
        return True
    return origin is not None and not is_loopback(_hostname(origin))


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # `[` without `]`
        return ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
