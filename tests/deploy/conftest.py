from collections.abc import Iterator

import pytest

from sagemaker_deploy.local.invocations.calls import Limits
from tests.support.aws.local_sagemaker import FAKE_SERVER, Local, running


@pytest.fixture(scope="session")
def fake_local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """A local endpoint with short time limits; its containers are fakes. Has endpoint `fake`."""
    limits = Limits(invoke_s=1.0, stream_s=2.0)
    with running(FAKE_SERVER, tmp_path_factory.mktemp("logs"), limits) as local:
        local.deploy("fake")
        yield local
