"""Plans compared as data; every call in them is checked against botocore's model of the service."""

import re
from typing import Any

import pytest

from sagemaker_deploy import config as configuration
from sagemaker_deploy import service_model
from sagemaker_deploy.errors import ConfigError
from sagemaker_deploy.plan import requests, variants
from sagemaker_deploy.plan.checks import EcrImage
from sagemaker_deploy.plan.deploy import AccountState, plan
from sagemaker_deploy.plan.steps import Plan, Secret, Step, Upload
from tests.deploy.plan.cases import BASE, CASES, COMPONENT

FACTS = AccountState("us-east-1", "000000000000")


def _plan(changes: dict[str, Any] | None = None, account_state: AccountState = FACTS) -> Plan:
    merged = {key: value for key, value in (BASE | (changes or {})).items() if value is not None}
    return plan(configuration.parse(merged), account_state)


def _operations(deployed: Plan) -> list[str]:
    return ["upload" if isinstance(step, Upload) else step.operation for step in deployed.steps]


def _step(deployed: Plan, operation: str) -> Step:
    return next(
        step for step in deployed.steps if isinstance(step, Step) and step.operation == operation
    )


def _variant(deployed: Plan) -> dict[str, Any]:
    return _step(deployed, "create_endpoint_config").params["ProductionVariants"][0]


def _action(operation: str) -> str:
    return "".join(word.capitalize() for word in operation.split("_"))


@pytest.mark.parametrize("case", CASES)
def test_every_call_is_one_that_the_service_would_accept(case: str) -> None:
    for step in _plan(CASES[case]).steps:
        assert isinstance(step, Step)
        service_model.check_input(step.service, _action(step.operation), step.params)


def test_deadlines_end_before_sagemakers_limit() -> None:
    def environment(changes: dict[str, Any]) -> dict[str, str]:
        return requests.environment(configuration.parse(BASE | changes))

    assert environment({})["REQUEST_DEADLINE"] == "55"
    assert 470 < int(environment({})["REQUEST_DEADLINE_STREAMED"]) < 480
    assert environment({"env": {"REQUEST_DEADLINE": "0"}})["REQUEST_DEADLINE"] == "0"
    asynchronous = environment({"asynchronous": {"output": "s3://bucket/answers"}})
    assert not requests.DEADLINES.keys() & asynchronous.keys()


@pytest.mark.parametrize("case", CASES)
def test_every_call_that_makes_something_can_be_undone(case: str) -> None:
    for step in _plan(CASES[case]).steps:
        if step.operation.startswith("create"):
            assert step.undo
            service_model.check_input("sagemaker", _action(step.undo.operation), step.undo.params)


def test_a_new_deployment_makes_model_config_and_endpoint() -> None:
    deployed = _plan()
    assert _operations(deployed) == ["create_model", "create_endpoint_config", "create_endpoint"]
    container = _step(deployed, "create_model").params["PrimaryContainer"]
    assert container["Environment"] == requests.DEADLINES | {"HF_MODEL_ID": "org/model"}
    assert _variant(deployed)["InferenceAmiVersion"] == "al2-ami-sagemaker-inference-gpu-3-1"
    assert _variant(deployed)["ContainerStartupHealthCheckTimeoutInSeconds"] == 900


def _facts_after(deployed: Plan, **more: Any) -> AccountState:
    model = _step(deployed, "create_model").params["ModelName"]
    config = _step(deployed, "create_endpoint_config").params["EndpointConfigName"]
    fields = {"models": frozenset([model]), "configs": frozenset([config])}
    fields |= {"endpoint_status": "InService", "endpoint_config": config}
    return AccountState("us-east-1", "000000000000", **(fields | more))


def test_deploying_again_does_nothing() -> None:
    assert _plan(account_state=_facts_after(_plan())).steps == ()


def test_a_changed_variable_creates_a_model_and_an_update() -> None:
    changed = _plan({"env": {"MAX_TOTAL_TOKENS": "512"}}, _facts_after(_plan()))
    assert _operations(changed) == ["create_model", "create_endpoint_config", "update_endpoint"]


def test_a_changed_count_keeps_the_model() -> None:
    changed = _plan({"instance_count": 2}, _facts_after(_plan()))
    assert _operations(changed) == ["create_endpoint_config", "update_endpoint"]


def test_an_endpoint_that_failed_before_is_deleted_first() -> None:
    deployed = _plan(account_state=_facts_after(_plan(), endpoint_status="Failed"))
    assert _operations(deployed) == ["delete_endpoint", "create_endpoint"]


@pytest.mark.parametrize(
    ("update", "policy"),
    [
        ({"strategy": "canary", "step_percent": 10}, "BlueGreenUpdatePolicy"),
        ({"strategy": "linear"}, "BlueGreenUpdatePolicy"),
        ({"strategy": "rolling", "alarms": ["errors"]}, "RollingUpdatePolicy"),
    ],
)
def test_an_update_follows_its_strategy(update: dict[str, Any], policy: str) -> None:
    changes = {"update": update, "instance_count": 2}
    step = _step(_plan(changes, _facts_after(_plan())), "update_endpoint")
    assert policy in step.params["DeploymentConfig"]
    assert ("AutoRollbackConfiguration" in step.params["DeploymentConfig"]) == ("alarms" in update)
    service_model.check_input("sagemaker", "UpdateEndpoint", step.params)


def test_an_update_keeps_the_count_that_scaling_has_reached() -> None:
    changes = CASES["scaled"] | {"env": {"A": "1"}}
    step = _step(_plan(changes, _facts_after(_plan(CASES["scaled"]))), "update_endpoint")
    assert step.params["RetainAllVariantProperties"] is True
    service_model.check_input("sagemaker", "UpdateEndpoint", step.params)


def test_an_update_takes_the_weights_of_the_file() -> None:
    changes = CASES["beside"] | CASES["scaled"]
    state = _facts_after(_plan(changes))
    step = _step(_plan(changes | {"weight": 5}, state), "update_endpoint")
    replaced = [
        each["VariantPropertyType"] for each in step.params["ExcludeRetainedVariantProperties"]
    ]
    assert replaced == ["DataCaptureConfig", "DesiredWeight"]


def test_an_update_to_other_variants_is_not_guarded() -> None:
    state = _facts_after(_plan(), variants=frozenset(["AllTraffic"]))
    assert "DeploymentConfig" not in _step(_plan(CASES["beside"], state), "update_endpoint").params
    guarded = _step(_plan({"env": {"A": "1"}}, state), "update_endpoint")
    assert "DeploymentConfig" in guarded.params
    with pytest.raises(ConfigError, match=r"update\.strategy: rolling"):
        _plan(CASES["beside"] | {"update": {"strategy": "rolling"}})


def test_a_local_folder_is_uploaded_before_the_model_is_made() -> None:
    changes = {"model": {"data": "some/folder"}, "bucket": "models"}
    deployed = _plan(changes, AccountState("us-east-1", "0" * 12, data_stamp="abc"))
    assert _operations(deployed)[:2] == ["upload", "create_model"]
    url = "s3://models/sagemaker-deploy/chat/abc/model.tar.gz"
    assert _step(deployed, "create_model").params["PrimaryContainer"]["ModelDataUrl"] == url


def test_a_component_has_the_gpus_and_the_model() -> None:
    deployed = _plan(COMPONENT | {"instance_type": "ml.g5.12xlarge"})
    assert "ModelName" not in _variant(deployed)
    assert _variant(deployed)["ManagedInstanceScaling"]["Status"] == "ENABLED"
    specification = _step(deployed, "create_inference_component").params["Specification"]
    compute = specification["ComputeResourceRequirements"]
    assert compute["NumberOfAcceleratorDevicesRequired"] == 4


def test_only_a_changed_component_is_updated() -> None:
    first = _plan(COMPONENT)
    params = _step(first, "create_inference_component").params
    described = {"Specification": params["Specification"], "RuntimeConfig": {"DesiredCopyCount": 1}}
    account_state = _facts_after(first, component=described)
    assert _operations(_plan(COMPONENT, account_state)) == []
    changed = _plan(COMPONENT | {"env": {"A": "1"}}, account_state)
    assert _operations(changed) == ["create_model", "update_inference_component"]
    step = _step(changed, "update_inference_component")
    service_model.check_input("sagemaker", "UpdateInferenceComponent", step.params)


def test_scaling_to_zero_has_a_way_back() -> None:
    operations = _operations(_plan(CASES["scaled to zero"]))
    assert operations[-4:] == [
        "register_scalable_target",
        "put_scaling_policy",
        "put_scaling_policy",
        "put_metric_alarm",
    ]


def test_scaling_tracks_concurrent_requests_at_high_resolution() -> None:
    policy = _step(_plan(CASES["scaled"]), "put_scaling_policy").params
    metric = policy["TargetTrackingScalingPolicyConfiguration"]["PredefinedMetricSpecification"]
    name = "SageMakerVariantConcurrentRequestsPerModelHighResolution"
    assert metric == {"PredefinedMetricType": name}


def test_a_secret_is_named_in_the_plan_and_never_read() -> None:
    step = _step(_plan(CASES["secret"]), "create_model")
    assert step.params["PrimaryContainer"]["Environment"]["HF_TOKEN"] == Secret("hub")


@pytest.mark.parametrize(
    ("changes", "account_state", "complaint"),
    [
        ({"image": "ubuntu:24.04"}, {}, "not an image in ECR"),
        ({"image": BASE["image"].removesuffix(":1")}, {}, "with a tag or digest"),
        ({}, {"image": EcrImage(exists=False)}, "is not in ECR; push it first"),
        ({}, {"role_exists": False}, "does not exist; `plan --policies`"),
        ({}, {"endpoint_status": "Updating"}, "wait until it has settled"),
        ({"model": {"data": "folder"}}, {}, "bucket: needed to upload"),
    ],
)
def test_errors_are_reported_before_the_first_step(
    changes: dict[str, Any], account_state: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        _plan(changes, AccountState("us-east-1", "0" * 12, **account_state))


@pytest.mark.parametrize(
    ("cuda", "ami"),
    [
        ("13.2", "al2023-ami-sagemaker-inference-gpu-4-1"),
        ("12.8", "al2-ami-sagemaker-inference-gpu-3-1"),
        ("12.2", "al2-ami-sagemaker-inference-gpu-2-1"),
    ],
)
def test_the_host_image_follows_the_images_cuda(cuda: str, ami: str) -> None:
    assert variants.ami(configuration.parse(BASE | {"cuda": cuda})) == ami


def test_a_gpu_without_a_cuda_version_is_warned_about() -> None:
    assert any(warning.startswith("cuda:") for warning in _plan({"cuda": None}).warnings)


def test_the_policies_name_this_deployment_only() -> None:
    deployed = _plan(
        {"model": {"data": "s3://models/chat/"}, "scaling": CASES["scaled"]["scaling"]}
    )
    text = str(deployed.policies)
    assert "arn:aws:s3:::models/chat/*" in text
    assert "repository/llm" in text
    assert "'iam:PassedToService': 'sagemaker.amazonaws.com'" in text
    wide = [
        statement["Action"]
        for statement in deployed.policies["execution"]["Statement"]
        if statement["Resource"] == "*"
    ]
    assert wide == [["ecr:GetAuthorizationToken"], ["cloudwatch:PutMetricData"]]
