"""The places of batch bodies, and who gets the next one."""

import gevent
import pytest

from container.frontend.apis.sagemaker.batch_slots import BatchSlots, BodySlots


def _nothing() -> None:
    """Nothing is looked at while a body waits."""


def _is_granted(body: BodySlots) -> bool:
    """Whether a body gets one more place at once."""
    waiter = gevent.spawn(body.acquire, _nothing)
    gevent.sleep(0)
    is_granted = waiter.ready()
    waiter.kill()
    return is_granted


def test_one_body_may_have_all_slots() -> None:
    body = BatchSlots(3).new_body()
    assert [_is_granted(body) for _ in range(4)] == [True, True, True, False]
    body.release()
    assert _is_granted(body)


def test_a_free_slot_goes_to_the_body_with_the_fewest() -> None:
    slots = BatchSlots(4)
    long, short = slots.new_body(), slots.new_body()
    for _ in range(4):
        long.acquire(_nothing)
    waiting_long = gevent.spawn(long.acquire, _nothing)
    gevent.sleep(0)
    waiting_short = gevent.spawn(short.acquire, _nothing)
    gevent.sleep(0)
    long.release()
    gevent.sleep(0)
    assert (waiting_long.ready(), waiting_short.ready()) == (False, True)
    long.release()
    gevent.sleep(0)
    assert waiting_long.ready()
    assert (long.num_running, short.num_running) == (3, 1)


def test_a_cancelled_body_frees_its_slots() -> None:
    slots = BatchSlots(1)
    first, second = slots.new_body(), slots.new_body()
    first.acquire(_nothing)

    def give_up() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        second.acquire(give_up)
    waiting = gevent.spawn(second.acquire, _nothing)
    gevent.sleep(0)
    waiting.kill()
    first.release()
    assert _is_granted(first)
