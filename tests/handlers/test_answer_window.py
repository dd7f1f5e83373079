"""Streams of user code wait for their readers, and a fork of user code ends."""

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from container.errors import HandlerFailed
from container.handlers.answer_window import AnswerWindow
from container.handlers.worker_process import Worker
from container.messages.handler import WorkerReady


def test_a_part_waits_until_the_client_has_read_enough() -> None:
    window = AnswerWindow(window=10)
    window.add(100)  # one part may be larger than the window
    with ThreadPoolExecutor(1) as thread:
        added = thread.submit(window.add, 1)
        window.acknowledge(90)
        assert not added.done()
        window.acknowledge(1)
        added.result(10)


def test_a_client_that_leaves_is_not_waited_for() -> None:
    window = AnswerWindow(window=10)
    window.add(10)
    threading.Timer(0.05, window.cancel).start()
    window.add(10)


def test_a_client_that_reads_nothing_loses_its_stream() -> None:
    window = AnswerWindow(window=10, stall_s=0.05)
    window.add(10)
    with pytest.raises(HandlerFailed, match="has read nothing"):
        window.add(1)


def test_a_fork_of_user_code_does_not_answer() -> None:
    worker = Worker.__new__(Worker)  # without sockets, of which the child uses none
    worker._pid = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            worker._put(WorkerReady(1))
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_waking_the_main_thread_never_waits() -> None:
    worker = Worker.__new__(Worker)
    heard, worker._ring = socket.socketpair()
    with heard, worker._ring:
        worker._ring.setblocking(False)
        for _ in range(10_000):  # more than the pair holds
            worker._wake()
