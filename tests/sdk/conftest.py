"""The local endpoint over the real server and the demo model, found by clients as users find it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sdk import aws_account
from tests.support.aws.local_sagemaker import (
    DEMO_MODEL,
    FAKE_SERVER,
    REAL_SERVER,
    REGION,
    Local,
    running,
)
from tests.support.aws.outside import Trap
from tests.support.servers import Server, serving
from tests.support.services.hub_cache import cached

KEY = "the key"

NOTHING_LEAVES = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "SAGEMAKER_SUPPRESS_V2_WARNING": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}


@pytest.fixture(scope="session", autouse=True)
def moto_url() -> Iterator[str]:
    """moto's server: every AWS service but the two that the local endpoint serves."""
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in NOTHING_LEAVES.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        aws_account.serve_image_config(patch)
        aws_account.serve_quotas(patch)
        yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture(scope="session")
def account(moto_url: str) -> dict[str, str]:
    """The fields of a configuration that name an account's image, role and bucket."""
    return aws_account.furnish()


@pytest.fixture(scope="session")
def local(moto_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """The local endpoint; the variables that lead clients to it are set."""
    # The documents' model is the demo model here, as if it had been downloaded.
    cache = cached(tmp_path_factory.mktemp("hub"), "Qwen/Qwen2.5-0.5B-Instruct", DEMO_MODEL)
    settings = {"DTYPE": "float32", "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    with (
        running(REAL_SERVER, tmp_path_factory.mktemp("logs"), **settings) as local,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", local.url)
        patch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", local.url)
        yield local


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Local]:
    """A local endpoint with fake containers, which clients find; `tmp_path` is the folder."""
    monkeypatch.chdir(tmp_path)
    with running(FAKE_SERVER, tmp_path / "logs") as local:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", local.url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", local.url)
        yield local


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo model without SageMaker before it, behind the key."""
    log = tmp_path_factory.mktemp("server") / "log"
    with serving(log, python=REAL_SERVER[0], API_KEY=KEY) as running:
        yield running


@pytest.fixture(scope="session")
def demo(local: Local) -> str:
    """An endpoint with the demo model, shared by tests that only call it; its name."""
    local.deploy("demo", {"Environment": {"HF_MODEL_ID": str(DEMO_MODEL)}})
    return "demo"


@pytest.fixture(scope="session")
def outside() -> Iterator[Trap]:
    """The world outside of this machine, for processes that get its variables."""
    trap = Trap()
    yield trap
    trap.close()
