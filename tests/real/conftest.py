from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.models import real_models


@pytest.fixture(scope="session")
def real_model() -> Path:
    """SmolLM2-135M-Instruct's folder, written first if it is missing."""
    return real_models.folder()


@pytest.fixture(scope="module", autouse=True)
def release_models() -> Iterator[None]:
    yield
    real_models.release()
