"""Turns the progress bars of libraries into stages of the start: `downloading m: 40 % of 3.4 GB`.

A stage is in `/ping`, now and then in the log, and on a terminal as a bar. Libraries draw none.
"""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import transformers
from huggingface_hub.utils.tqdm import disable_progress_bars as disable_hub_bars
from tqdm.std import tqdm  # type: ignore[import-untyped]  # it has none

from container.ipc.backend_server import Progress

EVERY_S = 0.5
GB = 1e9


def disable_progress_bars() -> None:
    """Disable the bars of transformers and the Hub's client, which would clutter the log."""
    transformers.utils.logging.disable_progress_bar()
    disable_hub_bars()


def download_bar(progress: Progress, stage: str) -> type[Any]:
    """Return the class of bars for `snapshot_download`; those of bytes report."""

    def report(bar: Any) -> None:
        if bar.unit == "B" and bar.total:
            progress(f"{stage}: {100 * bar.n / bar.total:.0f} % of {bar.total / GB:.2f} GB")

    return _bar(report)


@contextmanager
def followed_loading(progress: Progress, stage: str) -> Iterator[None]:
    """Report the share of the weights that transformers has loaded, within the block."""

    def report(bar: Any) -> None:
        if bar.total:
            progress(f"{stage}: {100 * bar.n / bar.total:.0f} %")

    bar_class = _bar(report)
    before = transformers.utils.logging.set_tqdm_hook(
        lambda _, positional, named: bar_class(*positional, **named)
    )
    try:
        yield
    finally:
        transformers.utils.logging.set_tqdm_hook(before)


def _bar(report: Callable[[Any], None]) -> type[Any]:
    """Return a class of bars that draw nothing and call `report` at most every EVERY_S."""

    class Bar(tqdm):
        monitor_interval = 0  # no thread that redraws bars

        def __init__(self, *positional: Any, **named: Any) -> None:
            named.pop("name", None)  # of the Hub's own class
            self._next_report = time.monotonic() + EVERY_S
            named |= {"file": io.StringIO(), "leave": False, "disable": False}
            super().__init__(*positional, **named)

        def display(self, *_: Any, **__: Any) -> None:
            """Report instead of drawing; called at most every `mininterval` seconds."""
            if time.monotonic() >= self._next_report:
                self._next_report = time.monotonic() + EVERY_S
                report(self)

    return Bar
