"""Requests that no client should send: sound ones with parts replaced, and odd bytes and headers.

A case is a function of its seed and number, so that one which failed can be sent again.
"""

import copy
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.chaos.raw_http import request
from benchmarks.fuzz.values import HEADERS, OTHER_ROUTES, SOUND, VALUES


@dataclass(frozen=True, slots=True)
class Case:
    """A request as bytes, and its name, which says how to make it again.

    `half_closes`: the client says that it sends no more, since its body may be incomplete.
    """

    name: str
    sent: bytes
    half_closes: bool = False


def cases(seed: int, count: int) -> Iterator[Case]:
    """Make `count` cases, spread over all routes."""
    routes = sorted(SOUND)
    for number in range(count):
        rng = random.Random(f"{seed}-{number}")
        name = f"{seed}-{number}"
        if number % 12 == 11:
            method, path = rng.choice(OTHER_ROUTES)
            headers = rng.choice(HEADERS)
            yield Case(name, request(method, path, b"", headers), _is_at_odds(headers))
        else:
            yield _post(name, routes[number % len(routes)], rng)


def _post(name: str, path: str, rng: random.Random) -> Case:
    body = copy.deepcopy(rng.choice(SOUND[path]))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
        body = _replace(body, rng)
    data = json.dumps(body).encode()
    if rng.random() < 0.2:
        data = _damage(data, rng)
    headers = rng.choice(HEADERS) if rng.random() < 0.25 else {}
    target = path + rng.choice(("", "", "", "?a=%ff&="))
    return Case(name, request("POST", target, data, headers), _is_at_odds(headers))


def _is_at_odds(headers: Mapping[str, str]) -> bool:
    """Whether the headers may announce another body than the one that is sent."""
    return "Content-Length" in headers or "Transfer-Encoding" in headers


def _replace(body: Any, rng: random.Random) -> Any:
    """Replace, add, rename or remove a part of a body."""
    if not isinstance(body, (dict, list)):
        return _value(rng)
    leaves = list(_leaves(body))
    if not leaves:
        return _value(rng)
    holder, key = rng.choice(leaves)
    match rng.randrange(6):
        case 0 if isinstance(holder, dict):
            holder[rng.choice(("", "x", "__proto__", "stream", "model", "\ud800", "n"))] = _value(
                rng
            )
        case 1:
            del holder[key]
        case 2 if isinstance(holder, list):
            holder.extend(holder[:1] * rng.choice((1, 50)))
        case _:
            holder[key] = _value(rng)
    return body


def _value(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(VALUES))


def _leaves(body: Any) -> Iterator[tuple[Any, Any]]:
    items: Sequence[Any] = list(body) if isinstance(body, dict) else range(len(body))
    for key in items:
        yield body, key
        if isinstance(body[key], (dict, list)):
            yield from _leaves(body[key])


def _damage(data: bytes, rng: random.Random) -> bytes:
    """Spoil the text of a body."""
    at = rng.randrange(len(data) + 1)
    match rng.randrange(8):
        case 0:
            return data[:at]
        case 1:
            return (
                data[:at] + rng.choice((b"\xed\xa0\x80", b"\xff", b"\0", b"\xc0\x80")) + data[at:]
            )
        case 2:
            return re.sub(
                rb'"[^"]*"', lambda found: found[0][:-1] + b'\xed\xa0\x80"', data, count=2
            )
        case 3:
            return data.decode().encode("utf-16", "surrogatepass")
        case 4:
            return data + data
        case 5:
            return b"[" * rng.choice((10, 3000, 100_000))
        case 6:
            return data.replace(b":", b': NaN, "a":', 1)
        case _:
            return rng.randbytes(rng.choice((0, 1, 100, 5000)))
