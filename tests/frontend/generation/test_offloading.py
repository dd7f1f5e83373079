"""Long loops let others run."""

import time

import gevent

from container.frontend.generation.offloading import SLICE_S, in_pieces


def test_others_have_their_timers_and_sockets_between_the_pieces() -> None:
    turns = []

    def wait_again_and_again() -> None:
        while True:
            gevent.sleep(1e-6)
            turns.append(time.monotonic())

    other = gevent.spawn(wait_again_and_again)
    for _ in in_pieces(range(20)):
        time.sleep(SLICE_S)  # work
    other.kill()
    assert len(turns) >= 10
