"""The local endpoint for tests, over the real server's process or a fake container."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from sagemaker_deploy.aws import Aws
from sagemaker_deploy.local.containers import launch
from sagemaker_deploy.local.containers.storage import Storage
from sagemaker_deploy.local.invocations.calls import Limits
from sagemaker_deploy.local.server import LocalSageMaker

ROOT = Path(__file__).parents[3]
DEMO_MODEL = ROOT / "examples" / "demo-model"
REAL_SERVER = [str(ROOT / ".venv" / "bin" / "python"), "-m", "container", "serve"]
FAKE_SERVER = [sys.executable, str(Path(__file__).with_name("fake_container.py"))]
REGION = "us-east-1"
ROLE = "arn:aws:iam::000000000000:role/SageMaker"
IMAGE = "000000000000.dkr.ecr.us-east-1.amazonaws.com/llm:1"


class Local:
    """A running local endpoint and clients of it."""

    def __init__(self, server: LocalSageMaker, url: str) -> None:
        self.server = server
        self.url = url
        self.sagemaker = client("sagemaker", url)
        self.runtime = client("sagemaker-runtime", url)

    def deploy(
        self, name: str, container: dict[str, Any] | None = None, config: Any = None, **variant: Any
    ) -> None:
        """Model, config and endpoint of one name, waited for."""
        definition = {"Image": IMAGE} | (container or {})
        self.sagemaker.create_model(
            ModelName=name, PrimaryContainer=definition, ExecutionRoleArn=ROLE
        )
        variant = {"InitialInstanceCount": 1, "InstanceType": "ml.g5.xlarge"} | variant
        if "ServerlessConfig" in variant:
            variant = {"ServerlessConfig": variant["ServerlessConfig"]}
        self.sagemaker.create_endpoint_config(
            EndpointConfigName=name,
            ProductionVariants=[{"VariantName": "AllTraffic", "ModelName": name} | variant],
            **(config or {}),
        )
        self.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        self.settle(name)

    def deploy_without_models(self, name: str) -> None:
        """Config and endpoint of one name for inference components, waited for."""
        variant = {"VariantName": "AllTraffic", "InstanceType": "ml.g5.xlarge"}
        self.sagemaker.create_endpoint_config(
            EndpointConfigName=name,
            ExecutionRoleArn=ROLE,
            ProductionVariants=[variant | {"InitialInstanceCount": 1}],
        )
        self.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        self.settle(name)

    def add_component(
        self, endpoint: str, name: str, specification: dict[str, Any]
    ) -> dict[str, Any]:
        """One copy of an inference component, waited for."""
        self.sagemaker.create_inference_component(
            InferenceComponentName=name,
            EndpointName=endpoint,
            VariantName="AllTraffic",
            Specification=specification,
            RuntimeConfig={"CopyCount": 1},
        )
        return self.settle_component(name)

    def settle_component(self, name: str, within_s: float = 90) -> dict[str, Any]:
        """Wait until the component is neither creating nor updating."""
        deadline = time.monotonic() + within_s
        while True:
            record = self.sagemaker.describe_inference_component(InferenceComponentName=name)
            if record["InferenceComponentStatus"] in ("InService", "Failed"):
                return dict(record)
            assert time.monotonic() < deadline, record
            time.sleep(0.05)

    def settle(self, name: str, within_s: float = 90) -> dict[str, Any]:
        """Wait until the endpoint is neither creating nor updating."""
        deadline = time.monotonic() + within_s
        while True:
            record = self.sagemaker.describe_endpoint(EndpointName=name)
            if record["EndpointStatus"] in ("InService", "Failed"):
                return dict(record)
            assert time.monotonic() < deadline, record
            time.sleep(0.05)

    def invoke(self, name: str, body: Any = None, **fields: Any) -> Any:
        """InvokeEndpoint with JSON both ways."""
        answer = self.runtime.invoke_endpoint(
            EndpointName=name, ContentType="application/json", Body=json.dumps(body or {}), **fields
        )
        return json.loads(answer["Body"].read())


def client(service: str, url: str) -> Any:
    """A boto3 client without retries."""
    return boto3.client(
        service,
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"total_max_attempts": 1}, read_timeout=120),
    )


@contextmanager
def running(
    server: list[str], log_dir: Path, limits: Limits | None = None, **settings: str
) -> Iterator[Local]:
    """A local endpoint for the length of a block; `settings` are every container's variables."""

    def command(_image: str, variables: Any, mounts: launch.Mounts, port: int) -> launch.Command:
        return launch.server_process(server, settings | dict(variables), mounts, port)

    local = LocalSageMaker(command, Storage(lambda: Aws(REGION)), log_dir, limits=limits)
    try:
        yield Local(local, local.start())
    finally:
        local.stop()
