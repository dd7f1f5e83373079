from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.image import containers
from tests.support.image.containers import Container

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without an image these tests have nothing to test; `make image-test` builds one."""
    if containers.IMAGE:
        return
    skip = pytest.mark.skip(reason="needs the image: run `make image-test`")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def demo() -> Iterator[Container]:
    """The demo model in a bare container, shared by the tests that only ask."""
    with containers.container(DTYPE="float32") as running:
        yield running
