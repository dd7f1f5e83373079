import pytest

from tests.support.models.prepared import cpu_kernels


@pytest.fixture(scope="session", autouse=True)
def _kernels_as_they_are() -> None:
    """Run the kernels' self-test before a test patches what it calls."""
    cpu_kernels()
