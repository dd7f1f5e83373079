from typing import Any

import pytest

from sagemaker_deploy import config as configuration
from sagemaker_deploy import service_model
from sagemaker_deploy.plan import adapters, changes, delete
from sagemaker_deploy.plan.capacity import scaling
from sagemaker_deploy.plan.delete import Deployed
from sagemaker_deploy.plan.steps import Step
from sagemaker_deploy.sections import Scaling
from tests.deploy.plan.cases import BASE

CONFIG = configuration.parse(BASE)
ADAPTER = {
    "InferenceComponentName": "polite",
    "InferenceComponentArn": "arn:aws:sagemaker:us-east-1:000000000000:inference-component/polite",
    "Specification": {
        "BaseInferenceComponentName": "chat-model",
        "Container": {"ArtifactUrl": "s3://b/old.tar.gz"},
    },
}
STEPS: dict[str, Step] = {
    "instances": changes.instances("chat", 3),
    "copies": changes.copies("chat-model", 0),
    "adapter": adapters.add("chat", "chat-model", "polite", "s3://b/polite.tar.gz"),
    "new weights": adapters.update("chat", ADAPTER, "s3://b/new.tar.gz")[0],
    "memory of the old": adapters.update("chat", ADAPTER, "s3://b/new.tar.gz")[1],
    "removal": adapters.remove("polite"),
    "transform": changes.transform(
        CONFIG, "job-1", "chat-1", "s3://b/in.jsonl", "s3://b/out", {"BatchStrategy": "MultiRecord"}
    ),
}


def _check(step: Step) -> None:
    action = "".join(word.capitalize() for word in step.operation.split("_"))
    service_model.check_input(step.service, action, step.params)


@pytest.mark.parametrize("name", STEPS)
def test_every_change_is_a_call_that_the_service_would_accept(name: str) -> None:
    _check(STEPS[name])


def test_new_weights_that_may_be_loading_keep_their_archive() -> None:
    assert STEPS["new weights"].uses_earlier


def test_a_transform_job_keeps_lines_and_order() -> None:
    params: Any = STEPS["transform"].params
    assert params["TransformInput"]["SplitType"] == "Line"
    assert params["TransformOutput"]["AssembleWith"] == "Line"


def test_scaling_a_component_counts_requests_for_each_copy() -> None:
    steps = scaling.steps_for(
        scaling.Target("chat", "chat-model", is_async=False),
        Scaling(min=0, max=4, target_concurrency=8),
    )
    assert steps[0].params["ScalableDimension"] == "sagemaker:inference-component:DesiredCopyCount"
    assert "NoCapacityInvocationFailures" in str(steps[3].params)


def test_delete_begins_with_the_endpoint() -> None:
    deployed = Deployed(
        "chat",
        endpoint=True,
        components=("chat-model",),
        configs=("chat-1",),
        models=("chat-2",),
        targets=(("endpoint/chat/variant/AllTraffic", "sagemaker:variant:DesiredInstanceCount"),),
        alarms=("chat-wake",),
        objects=(("models", "key"),),
    )
    steps = delete.plan(deployed).steps
    assert [step.operation for step in steps if isinstance(step, Step)] == [
        "deregister_scalable_target",
        "delete_alarms",
        "delete_inference_component",
        "delete_endpoint",
        "delete_endpoint_config",
        "delete_model",
        "delete_object",
    ]


def test_delete_of_nothing_is_an_empty_plan() -> None:
    assert delete.plan(Deployed("chat")).steps == ()
