"""Adapter components, over a fake container that has /adapters."""

from pathlib import Path

import pytest

from tests.support.aws.local_sagemaker import IMAGE, Local
from tests.support.models.archives import archive

COMPUTE = {"NumberOfCpuCoresRequired": 1, "MinMemoryRequiredInMb": 1024}


@pytest.fixture
def base(fake_local: Local):
    fake_local.deploy_without_models("lora")
    fake_local.add_component(
        "lora", "base", {"Container": {"Image": IMAGE}, "ComputeResourceRequirements": COMPUTE}
    )
    yield fake_local
    fake_local.sagemaker.delete_endpoint(EndpointName="lora")
    fake_local.sagemaker.delete_endpoint_config(EndpointConfigName="lora")


def _adapter(local: Local, name: str, url: str) -> dict:
    specification = {"BaseInferenceComponentName": "base", "Container": {"ArtifactUrl": url}}
    return local.add_component("lora", name, specification)


def test_requests_for_an_adapter_reach_the_base_with_its_name(base: Local, tmp_path: Path) -> None:
    url = archive(tmp_path / "polite.tar.gz", adapter_config="{}")
    assert _adapter(base, "polite", url)["InferenceComponentStatus"] == "InService"
    received = base.invoke("lora", InferenceComponentName="polite")
    assert received["x-amzn-sagemaker-adapter-identifier"] == "polite"
    assert received["loaded"] == {"polite": ["adapter_config"]}
    assert received["path"] == "/invocations"
    plain = base.invoke("lora", InferenceComponentName="base")
    assert "x-amzn-sagemaker-adapter-identifier" not in plain


def test_a_deleted_adapter_is_unloaded(base: Local, tmp_path: Path) -> None:
    _adapter(base, "brief", archive(tmp_path / "brief.tar.gz", adapter_config="{}"))
    base.sagemaker.delete_inference_component(InferenceComponentName="brief")
    assert base.invoke("lora", InferenceComponentName="base")["loaded"] == {}


def test_a_refused_adapter_has_the_containers_error(base: Local, tmp_path: Path) -> None:
    record = _adapter(base, "wrong", archive(tmp_path / "wrong.tar.gz", bad=""))
    assert record["InferenceComponentStatus"] == "Failed"
    assert "answered 400 to POST /adapters for wrong: not a model" in record["FailureReason"]
