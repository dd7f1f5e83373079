"""The control plane's own rules: names, states, updates, components."""

import time

import pytest
from botocore.exceptions import ClientError

from tests.support.aws.local_sagemaker import IMAGE, ROLE, Local
from tests.support.servers import wait_for

COMPUTE = {"NumberOfCpuCoresRequired": 1, "MinMemoryRequiredInMb": 1024}


def _message(call, **fields) -> str:
    with pytest.raises(ClientError) as caught:
        call(**fields)
    assert caught.value.response["Error"]["Code"] == "ValidationException"
    return caught.value.response["Error"]["Message"]


def test_a_name_is_taken_only_once(fake_local: Local) -> None:
    message = _message(
        fake_local.sagemaker.create_endpoint, EndpointName="fake", EndpointConfigName="fake"
    )
    assert "already existing endpoint" in message


def test_a_config_needs_its_model(fake_local: Local) -> None:
    variant = {"VariantName": "v", "ModelName": "nobody", "InstanceType": "ml.g5.xlarge"}
    message = _message(
        fake_local.sagemaker.create_endpoint_config,
        EndpointConfigName="c",
        ProductionVariants=[variant],
    )
    assert "Could not find model" in message


def test_an_operation_that_is_not_imitated_is_refused_by_name(fake_local: Local) -> None:
    with pytest.raises(ClientError, match="does not imitate CreateTrainingJob"):
        fake_local.sagemaker.create_training_job(
            TrainingJobName="t",
            AlgorithmSpecification={"TrainingInputMode": "File"},
            RoleArn=ROLE,
            OutputDataConfig={"S3OutputPath": "s3://b"},
            ResourceConfig={"VolumeSizeInGB": 1},
            StoppingCondition={},
        )


def test_a_failed_endpoint_has_a_reason_and_can_be_deleted(fake_local: Local) -> None:
    fake_local.sagemaker.create_model(
        ModelName="sick",
        PrimaryContainer={"Image": IMAGE, "ModelDataUrl": "file:///no/such.tar.gz"},
    )
    fake_local.sagemaker.create_endpoint_config(
        EndpointConfigName="sick",
        ProductionVariants=[
            {"VariantName": "v", "ModelName": "sick", "InstanceType": "ml.g5.xlarge"}
        ],
    )
    fake_local.sagemaker.create_endpoint(EndpointName="sick", EndpointConfigName="sick")
    record = fake_local.settle("sick")
    assert record["EndpointStatus"] == "Failed"
    assert "no such file" in record["FailureReason"]
    fake_local.sagemaker.delete_endpoint(EndpointName="sick")
    assert "Could not find" in _message(fake_local.sagemaker.describe_endpoint, EndpointName="sick")


def test_an_update_replaces_containers_only_if_new_ones_start(fake_local: Local) -> None:
    fake_local.deploy("blue")
    fake_local.sagemaker.create_model(
        ModelName="bad", PrimaryContainer={"Image": IMAGE, "ModelDataUrl": "file:///no/such.tar.gz"}
    )
    for name, model in {"green": "blue", "red": "bad"}.items():
        fake_local.sagemaker.create_endpoint_config(
            EndpointConfigName=name,
            ProductionVariants=[
                {"VariantName": name, "ModelName": model, "InstanceType": "ml.g5.xlarge"}
            ],
        )
    fake_local.sagemaker.update_endpoint(EndpointName="blue", EndpointConfigName="green")
    assert fake_local.settle("blue")["EndpointConfigName"] == "green"
    fake_local.sagemaker.update_endpoint(EndpointName="blue", EndpointConfigName="red")
    record = fake_local.settle("blue")
    assert record["EndpointConfigName"] == "green"
    assert "no such file" in record["FailureReason"]
    assert fake_local.invoke("blue")["path"] == "/invocations"
    fake_local.sagemaker.delete_endpoint(EndpointName="blue")


def test_listing_filters_by_name(fake_local: Local) -> None:
    endpoints = fake_local.sagemaker.list_endpoints(NameContains="fak")["Endpoints"]
    assert [endpoint["EndpointName"] for endpoint in endpoints] == ["fake"]


def test_components_share_an_endpoint_and_scale_to_zero(fake_local: Local) -> None:
    fake_local.deploy_without_models("shared")
    specification = {"Container": {"Image": IMAGE}, "ComputeResourceRequirements": COMPUTE}
    record = fake_local.add_component("shared", "one", specification)
    assert record["InferenceComponentStatus"] == "InService"
    assert fake_local.invoke("shared", InferenceComponentName="one")["path"] == "/invocations"
    with pytest.raises(ClientError, match="Inference Component Name header is required"):
        fake_local.invoke("shared")
    for count in (0, 2):
        fake_local.sagemaker.update_inference_component_runtime_config(
            InferenceComponentName="one", DesiredRuntimeConfig={"CopyCount": count}
        )
        assert fake_local.settle_component("one")["InferenceComponentStatus"] == "InService"
        if count == 0:
            with pytest.raises(ClientError, match="no capacity"):
                fake_local.invoke("shared", InferenceComponentName="one")
    assert fake_local.invoke("shared", InferenceComponentName="one")["path"] == "/invocations"
    container = {"Image": IMAGE, "Environment": {"VERSION": "2"}}
    fake_local.sagemaker.update_inference_component(
        InferenceComponentName="one",
        Specification={"Container": container, "ComputeResourceRequirements": COMPUTE},
    )
    assert fake_local.settle_component("one")["InferenceComponentStatus"] == "InService"
    received = fake_local.invoke("shared", InferenceComponentName="one")
    assert received["env"]["VERSION"] == "2"
    fake_local.sagemaker.delete_inference_component(InferenceComponentName="one")
    fake_local.sagemaker.delete_endpoint(EndpointName="shared")


def test_an_asynchronous_endpoint_answers_into_files(fake_local: Local, tmp_path) -> None:
    # boto3 leaves patterns to the service; the local endpoint takes file:// where that has s3://.
    output = {"S3OutputPath": f"file://{tmp_path}/out", "S3FailurePath": f"file://{tmp_path}/bad"}
    config = {"AsyncInferenceConfig": {"OutputConfig": output}}
    fake_local.deploy("later", config=config)
    send = fake_local.runtime.invoke_endpoint_async
    good = send(EndpointName="later", Body=b'{"answer": "done"}')
    bad = send(EndpointName="later", Body=b'{"status": 500, "answer": "broken"}')
    for answer, field, text in (
        (good, "OutputLocation", "done"),
        (bad, "FailureLocation", "broken"),
    ):
        path = tmp_path / answer[field].removeprefix(f"file://{tmp_path}/")
        wait_for(path.exists, 10)
        time.sleep(0.05)
        assert text in path.read_text()
    with pytest.raises(ClientError, match="asynchronous endpoint"):
        fake_local.invoke("later")
