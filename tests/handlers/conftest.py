"""Programs of users leave no trace in the imports of other tests."""

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _clean_imports() -> Iterator[None]:
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name in [name for name in sys.modules if name.startswith(("inference", "my_words"))]:
        del sys.modules[name]
