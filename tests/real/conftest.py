from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.models import real_models


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give whole models the time that a slow processor takes, where a test sets no limit."""
    folder = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(folder) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def real_model() -> Path:
    """SmolLM2-135M-Instruct's folder, written first if it is missing."""
    return real_models.folder()


@pytest.fixture(scope="module", autouse=True)
def release_models() -> Iterator[None]:
    yield
    real_models.release()
