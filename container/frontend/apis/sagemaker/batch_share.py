"""The places that records of batch bodies have, shared evenly among the bodies of this process.

Bodies of many records have a share of MAX_CONCURRENT_REQUESTS, which the engine keeps as well; a
free place goes to the body with the fewest running records, so that a short body beside a long one
is answered soon.
"""

from collections.abc import Callable

from gevent.event import Event

# How often a body that waits for a place looks at its deadline and its client.
LOOK_S = 0.5


class BodyPlaces:
    """The places of one body. Its own greenlet acquires them, and its records release them."""

    def __init__(self, share: "BatchShare") -> None:
        self._share = share
        self.num_running = 0
        self.granted = Event()

    def acquire(self, on_wait: Callable[[], None]) -> None:
        """Wait for a place. `on_wait` is called before and in a long wait, and may raise."""
        on_wait()
        self._share.request(self)
        try:
            while not self.granted.wait(LOOK_S):
                on_wait()
        except BaseException:
            self._share.withdraw(self)
            raise

    def release(self, _: object = None) -> None:
        """Give a place back."""
        self._share.take_back(self)


class BatchShare:
    """Owns the places; `size` records run at a time, of all bodies together."""

    def __init__(self, size: int) -> None:
        self._num_free = size
        self._waiting: list[BodyPlaces] = []

    def new_body(self) -> BodyPlaces:
        """Let another body take part."""
        return BodyPlaces(self)

    def request(self, body: BodyPlaces) -> None:
        """Note that a body wants one more place."""
        body.granted.clear()
        self._waiting.append(body)
        self._grant()

    def withdraw(self, body: BodyPlaces) -> None:
        """Forget that a body wants a place, or take back the one that it has just got."""
        if body in self._waiting:
            self._waiting.remove(body)
        else:
            self.take_back(body)

    def take_back(self, body: BodyPlaces) -> None:
        """Free a place of a body."""
        body.num_running -= 1
        self._num_free += 1
        self._grant()

    def _grant(self) -> None:
        while self._num_free and self._waiting:
            body = min(self._waiting, key=lambda waiting: waiting.num_running)
            self._waiting.remove(body)
            self._num_free -= 1
            body.num_running += 1
            body.granted.set()
