"""The garbage collector around imports."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Import without garbage collections, and keep later ones from what was imported.

    torch and transformers are half a million objects, none of them garbage: collections take a
    sixth of the time of their import, and later ones would go through all of them again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
