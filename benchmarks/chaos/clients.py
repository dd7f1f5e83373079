"""Clients that send one request after another, and count how these end."""

import threading
from collections import Counter
from collections.abc import Callable

from benchmarks.chaos.load import Call, Kind

# Chooses the next request of a client from its number and how many it has sent: the kind of
# request, and whether it is a stream.
Choose = Callable[[int, int], tuple[Kind, bool]]


class Clients:
    """Threads that send requests until they are stopped, and the outcomes by whether streamed.

    `observe` gets a client's number and each request that has ended, in the client's thread.
    """

    def __init__(
        self, url: str, count: int, choose: Choose,
        observe: Callable[[int, Call], None] = lambda _number, _call: None,
    ) -> None:  # fmt: skip
        self.outcomes: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        self.messages: set[str] = set()
        self._url = url
        self._choose = choose
        self._observe = observe
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(count)]

    @property
    def num_lost(self) -> int:
        """How many requests were not answered as a whole."""
        return sum(outcomes.total() - outcomes["whole"] for outcomes in self.outcomes.values())

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait for the running requests, and send no more."""
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        num_sent = 0
        while not self._is_over.is_set():
            kind, is_stream = self._choose(number, num_sent)
            num_sent += 1
            call = Call(self._url, kind, is_stream=is_stream)
            call.run()
            self.outcomes[is_stream][call.outcome] += 1
            self.messages |= {call.message} - {""}
            self._observe(number, call)
