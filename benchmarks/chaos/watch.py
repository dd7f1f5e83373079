"""Two observers of a server: what /ping says, and whether short requests are answered."""

import json
import threading
import time
from collections import Counter
from dataclasses import dataclass

import requests

PAUSE_S = 0.05
PING_TIMEOUT_S = 2.0  # SageMaker's
REQUEST_TIMEOUT_S = 5.0
SHORT = {"inputs": "Hello", "parameters": {"max_new_tokens": 2}}
SHORT_CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
# Another grammar each time.
MAX_NUMBER = 997
SHORT_GRAMMAR = {
    "inputs": "Hello",
    "parameters": {"max_new_tokens": 2, "grammar": {"type": "regex", "value": "[a-z]{NUMBER}"}},
}
SHORT_TEXTS = {"inputs": ["Hello"]}


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the server: when it began and ended, what it asked, and the status (0: none)."""

    began: float
    at: float
    path: str
    status: int


class Watch(threading.Thread):
    """Asks again and again on new connections until it is stopped."""

    def __init__(self, url: str, bodies: list[tuple[str, dict[str, object]]] | None = None) -> None:
        """Without bodies it asks /ping."""
        super().__init__(daemon=True)
        self.looks: list[Look] = []
        self._url = url
        self._bodies = bodies
        self._is_over = threading.Event()

    def run(self) -> None:
        """Look until the end."""
        number = 0
        while not self._is_over.wait(PAUSE_S):
            path, body = ("/ping", None) if self._bodies is None else self._choose(number)
            began = time.monotonic()
            status = self._status(path, body)
            self.looks.append(Look(began, time.monotonic(), path, status))
            number += 1

    def stop(self) -> None:
        """End it."""
        self._is_over.set()
        self.join()

    def statuses(self, since: float = 0.0) -> Counter[str]:
        """Count the statuses that it saw; `none` is no answer."""
        return Counter(str(look.status or "none") for look in self.looks if look.at >= since)

    def first_failure_at(self, since: float) -> float | None:
        """Return when it first saw a failure."""
        return next((x.at for x in self.looks if x.at >= since and x.status != 200), None)

    def well_since(self, since: float = 0.0) -> float | None:
        """Return when it saw the first success of those, begun after `since`, that have not ended.

        None without any.
        """
        at = None
        for look in self.looks:
            if look.began < since and look.status == 200:
                continue
            at = None if look.status != 200 else look.at if at is None else at
        return at

    def failures(self, since: float) -> list[str]:
        """Return the different failures that it saw."""
        bad = [look for look in self.looks if look.at >= since and look.status != 200]
        return sorted({f"{look.path}: {look.status or 'none'}" for look in bad})

    def _choose(self, number: int) -> tuple[str, str]:
        assert self._bodies is not None
        path, body = self._bodies[number % len(self._bodies)]
        return path, json.dumps(body).replace("NUMBER", str(number % MAX_NUMBER + 1))

    def _status(self, path: str, body: str | None) -> int:
        url, headers = self._url + path, {"Content-Type": "application/json"}
        try:
            if body is None:
                return requests.get(url, timeout=PING_TIMEOUT_S).status_code
            answer = requests.post(url, body, headers=headers, timeout=REQUEST_TIMEOUT_S)
            return answer.status_code
        except requests.RequestException:
            return 0
