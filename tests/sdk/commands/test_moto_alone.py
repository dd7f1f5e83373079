"""Plans carried out on moto's own SageMaker: another imitation must take the same calls."""

from typing import Any

import boto3
import pytest

from sagemaker_deploy import config as configuration
from sagemaker_deploy.aws import Aws
from sagemaker_deploy.execute import Executor
from sagemaker_deploy.plan import delete, deploy
from sagemaker_deploy.plan.delete import Deployed
from sagemaker_deploy.plan.deploy import AccountState
from sagemaker_deploy.plan.steps import Step
from tests.deploy.plan.cases import BASE, CASES

# moto 5.2 has no inference components and fails on configs without ModelName.
KNOWN_TO_MOTO = ["real-time", "archive", "serverless", "asynchronous", "scaled", "async to zero"]


@pytest.mark.parametrize("case", KNOWN_TO_MOTO)
def test_deploying_and_deleting_leaves_moto_as_it_was(
    case: str, moto_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", moto_url)
    sagemaker = boto3.client("sagemaker")
    executor = Executor(Aws("us-east-1"), lambda *_: None, poll_s=0.1)
    planned = deploy.plan(_config(CASES[case]), AccountState("us-east-1", "123456789012"))
    executor.apply(planned)
    assert sagemaker.describe_endpoint(EndpointName="chat")["EndpointStatus"] == "InService"
    executor.apply(delete.plan(_create(planned.steps)))
    assert sagemaker.list_models()["Models"] == []
    assert sagemaker.list_endpoint_configs()["EndpointConfigs"] == []
    assert sagemaker.list_endpoints()["Endpoints"] == []
    assert boto3.client("cloudwatch").describe_alarms()["MetricAlarms"] == []


def _config(changes: dict[str, Any]) -> configuration.Config:
    # moto knows instance types up to g4dn.
    merged = BASE | {"instance_type": "ml.g4dn.xlarge"} | changes
    return configuration.parse({key: value for key, value in merged.items() if value is not None})


def _create(steps: tuple[Any, ...]) -> Deployed:
    calls = {step.operation: step.params for step in steps if isinstance(step, Step)}
    target = calls.get("register_scalable_target")
    alarm = calls.get("put_metric_alarm")
    return Deployed(
        "chat",
        endpoint=True,
        configs=(calls["create_endpoint_config"]["EndpointConfigName"],),
        models=(calls["create_model"]["ModelName"],),
        targets=((target["ResourceId"], target["ScalableDimension"]),) if target else (),
        alarms=(alarm["AlarmName"],) if alarm else (),
    )
