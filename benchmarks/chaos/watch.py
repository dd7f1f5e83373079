"""Two observers of a server: what /ping says, and whether short requests are answered."""

import threading
import time
from dataclasses import dataclass

import requests

PAUSE_S = 0.05
PING_TIMEOUT_S = 2.0  # SageMaker's
REQUEST_TIMEOUT_S = 5.0
SHORT = {"inputs": "Hello", "parameters": {"max_new_tokens": 2}}
SHORT_CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
SHORT_GRAMMAR = {
    "inputs": "Hello",
    "parameters": {"max_new_tokens": 2, "grammar": {"type": "regex", "value": "[a-z]{9}"}},
}
SHORT_TEXTS = {"inputs": ["Hello"]}


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the server: when it ended, and the status (0: none)."""

    at: float
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
            self.looks.append(Look(time.monotonic(), self._status(number)))
            number += 1

    def stop(self) -> None:
        """End it."""
        self._is_over.set()
        self.join()

    def first_failure_at(self, since: float) -> float | None:
        """Return when it first saw a failure."""
        return next((x.at for x in self.looks if x.at >= since and x.status != 200), None)

    def well_since(self) -> float | None:
        """Return when it saw the first of the successes that have not ended; None without any."""
        at = None
        for look in self.looks:
            at = None if look.status != 200 else look.at if at is None else at
        return at

    def _status(self, number: int) -> int:
        try:
            if self._bodies is None:
                return requests.get(f"{self._url}/ping", timeout=PING_TIMEOUT_S).status_code
            path, body = self._bodies[number % len(self._bodies)]
            answer = requests.post(self._url + path, json=body, timeout=REQUEST_TIMEOUT_S)
            return answer.status_code
        except requests.RequestException:
            return 0
