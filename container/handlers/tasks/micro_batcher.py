"""Micro-batches: concurrent calls of several threads become one call of the model.

No call waits for a batch to fill: the calls that arrive during a batch are the next batch. If a
call with several inputs fails, each runs alone, so only the bad one gets the error.
"""

import json
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

MAX_BATCH = 32
Run = Callable[[list[Any], dict[str, Any]], list[Any]]


@dataclass(slots=True)
class _Call:
    inputs: Any
    parameters: dict[str, Any]
    key: str
    answer: "Future[Any]" = field(default_factory=Future)


class MicroBatcher:
    """Owns the thread that calls the model."""

    def __init__(self, run: Run, max_batch: int = MAX_BATCH) -> None:
        self._run = run
        self._max_batch = max_batch
        self._calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="batches", daemon=True).start()

    def call(self, inputs: Any, parameters: dict[str, Any]) -> Any:
        """Wait for the answer; a list is not batched with other calls. Raises the model's error."""
        # Only inputs of the same type and with the same parameters can be batched.
        is_alone = isinstance(inputs, list)
        key = "" if is_alone else json.dumps([type(inputs).__name__, parameters], sort_keys=True)
        call = _Call(inputs, parameters, key)
        self._calls.put(call)
        return call.answer.result()

    def _serve(self) -> None:
        while True:
            waiting = [self._calls.get()]
            while len(waiting) < self._max_batch and not self._calls.empty():
                waiting.append(self._calls.get())
            groups: dict[str, list[_Call]] = {}
            for index, call in enumerate(waiting):
                groups.setdefault(call.key or f"alone {index}", []).append(call)
            for calls in groups.values():
                self._answer(calls)

    def _answer(self, calls: list[_Call]) -> None:
        try:
            results = self._run([call.inputs for call in calls], calls[0].parameters)
        except BaseException as error:  # the thread must live; the caller gets the error
            if len(calls) == 1:
                calls[0].answer.set_exception(error)
                return
            for call in calls:
                self._answer([call])
            return
        for call, result in zip(calls, results, strict=True):
            call.answer.set_result(result)
