"""The platform's side of a multi-model endpoint, over a fake container that has /models."""

from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from tests.support.aws.local_sagemaker import Local
from tests.support.models.archives import archive


@pytest.fixture
def many(fake_local: Local, tmp_path: Path):
    for name in ("a", "b", "c"):
        archive(tmp_path / f"{name}.tar.gz", **{f"{name}.txt": name})
    archive(tmp_path / "bad.tar.gz", bad="")
    container = {
        "Mode": "MultiModel",
        "ModelDataUrl": f"file://{tmp_path}/",
        "Environment": {"ROOM": "2"},
    }
    fake_local.deploy("many", container)
    yield fake_local
    fake_local.sagemaker.delete_endpoint(EndpointName="many")
    fake_local.sagemaker.delete_endpoint_config(EndpointConfigName="many")
    fake_local.sagemaker.delete_model(ModelName="many")


def _files(local: Local, target: str) -> list[str]:
    received = local.invoke("many", TargetModel=target)
    assert received["x-amzn-sagemaker-target-model"] == target
    assert received["env"]["SAGEMAKER_MULTI_MODEL"] == "true"
    model_id = received["path"].split("/")[2]
    return received["loaded"][model_id]


def test_a_model_is_loaded_when_it_is_first_asked_for(many: Local) -> None:
    assert _files(many, "a.tar.gz") == ["a.txt"]
    assert _files(many, "b.tar.gz") == ["b.txt"]
    assert _files(many, "a.tar.gz") == ["a.txt"]


def test_the_least_recently_used_model_is_unloaded(many: Local) -> None:
    for target in ("a.tar.gz", "b.tar.gz", "a.tar.gz", "c.tar.gz"):
        _files(many, target)
    loaded = many.invoke("many", TargetModel="c.tar.gz")["loaded"]
    assert sorted(loaded.values()) == [["a.txt"], ["c.txt"]]


def test_a_model_that_is_not_there_is_a_validation_error(many: Local) -> None:
    with pytest.raises(ClientError, match="Failed to download model data"):
        many.invoke("many", TargetModel="none.tar.gz")


def test_a_model_that_the_container_refuses_is_a_model_error(many: Local) -> None:
    with pytest.raises(ClientError, match="answered 400 to POST /models: not a model"):
        many.invoke("many", TargetModel="bad.tar.gz")


def test_the_target_is_needed_here_and_refused_elsewhere(many: Local) -> None:
    with pytest.raises(ClientError, match="TargetModel header is needed"):
        many.invoke("many")
    with pytest.raises(ClientError, match="not a multi-model endpoint"):
        many.invoke("fake", TargetModel="a.tar.gz")
