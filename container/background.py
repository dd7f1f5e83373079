"""Runs work in threads besides the main thread of a process."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def run_in_background(name: str, work: Callable[[], T]) -> "Future[T]":
    """Run `work` in a new daemon thread, which never delays the exit of the process."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # reading the future raises it
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
