"""A container whose process ends is replaced, as on the service; one that stays dead is seen."""

import contextlib
from typing import Any

import psutil
from botocore.exceptions import ClientError

from sagemaker_deploy.local.containers.process import Container
from tests.support.aws.local_sagemaker import Local
from tests.support.servers import wait_for


def _container(local: Local, endpoint: str) -> Container | None:
    return local.server.control._endpoints.live(endpoint).variants["AllTraffic"].container


def _responds(local: Local, endpoint: str) -> bool:
    with contextlib.suppress(ClientError):
        received: dict[str, Any] = local.invoke(endpoint)
        return received["path"] == "/invocations"
    return False


def test_a_container_that_dies_is_replaced(fake_local: Local) -> None:
    fake_local.deploy("mortal")
    first = _container(fake_local, "mortal")
    assert first
    [process] = psutil.Process(first._process.pid).children()
    process.kill()
    wait_for(lambda: _container(fake_local, "mortal") not in (first, None), 30)
    wait_for(lambda: _responds(fake_local, "mortal"), 10)
    record = fake_local.sagemaker.describe_endpoint(EndpointName="mortal")
    assert record["EndpointStatus"] == "InService"
    fake_local.sagemaker.delete_endpoint(EndpointName="mortal")
