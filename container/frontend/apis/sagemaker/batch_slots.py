"""The slots in which records of batch bodies run, divided evenly among the bodies of this process.

The slots are a fraction of MAX_CONCURRENT_REQUESTS, which the engine enforces as well. A free slot
goes to the body with the fewest running records, so that a short body need not wait for a long one.
"""

from collections.abc import Callable

from gevent.event import Event

from container.frontend.web.responses import DISCONNECT_POLL_S


class BodySlots:
    """The slots of one body. The body's greenlet acquires them, and its records release them."""

    def __init__(self, slots: "BatchSlots") -> None:
        self._slots = slots
        self.num_running = 0
        self.granted = Event()

    def acquire(self, on_wait: Callable[[], None]) -> None:
        """Wait for a slot. Calls `on_wait` before and during a long wait; it may raise."""
        on_wait()
        self._slots.request(self)
        try:
            while not self.granted.wait(DISCONNECT_POLL_S):
                on_wait()
        except BaseException:
            self._slots.withdraw(self)
            raise

    def release(self, _: object = None) -> None:
        """Return a slot."""
        self._slots.take_back(self)


class BatchSlots:
    """Owns the slots; `size` records run at a time, of all bodies together."""

    def __init__(self, size: int) -> None:
        self._num_free = size
        self._waiting: list[BodySlots] = []

    def new_body(self) -> BodySlots:
        """Add a body."""
        return BodySlots(self)

    def request(self, body: BodySlots) -> None:
        """Queue a body for one more slot."""
        body.granted.clear()
        self._waiting.append(body)
        self._grant()

    def withdraw(self, body: BodySlots) -> None:
        """Take a body off the queue, or take back the slot that it has just been granted."""
        if body in self._waiting:
            self._waiting.remove(body)
        else:
            self.take_back(body)

    def take_back(self, body: BodySlots) -> None:
        """Free a slot of a body."""
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
