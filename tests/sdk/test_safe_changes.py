"""What a failed or repeated command leaves alone: archives in use, scaling, other components."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from click.testing import CliRunner, Result

from sagemaker_deploy.commands.main import main
from sagemaker_deploy.execute import pack
from tests.sdk.aws_account import BUCKET
from tests.support.iam import EVERYTHING, enforced
from tests.support.local_sagemaker import FAKE_SERVER, Local, running

POLL = ("--poll", "0.1")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Local]:
    monkeypatch.chdir(tmp_path)
    with running(FAKE_SERVER, tmp_path / "logs") as fake:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", fake.url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", fake.url)
        yield fake


def _run(*arguments: str, expect: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == expect, (result.output, result.stderr, result.exception)
    return result


def _write(account: dict[str, str], **changes: Any) -> None:
    values = {"name": "safe", "instance_type": "ml.c7i.2xlarge", "region": "us-east-1"} | account
    Path("deploy.yaml").write_text(yaml.safe_dump(values | changes))


def _folder(name: str, text: str = "{}") -> str:
    Path(name).mkdir(exist_ok=True)
    (Path(name) / "config.json").write_text(text)
    return name


def _objects() -> dict[str, str]:
    listing = boto3.client("s3").list_objects_v2(Bucket=BUCKET, Prefix="sagemaker-deploy/safe/")
    return {item["Key"]: item["ETag"] for item in listing.get("Contents", [])}


def test_a_taken_adapters_name_leaves_the_running_adapters_archive(
    account: dict[str, str], fake: Local
) -> None:
    _write(account, model={"id": "a/b"}, component={})
    _run("deploy", "--yes", *POLL)
    add = ("adapters", "add", "safe", "polite")
    _run(*add, _folder("one"), "--bucket", BUCKET, *POLL)
    before = _objects()
    assert len(before) == 1
    refused = _run(*add, _folder("two", '{"other": 1}'), "--bucket", BUCKET, *POLL, expect=2)
    assert "ADAPTER: safe has a component polite; remove it first" in refused.stderr
    assert _objects() == before

    # The service refuses it, too, where the listing has not shown the adapter yet.
    Path("two", "bad").write_text("")
    failed = ("adapters", "add", "safe", "worse", "two", "--bucket", BUCKET, *POLL)
    assert "removed again" in _run(*failed, expect=6).stderr
    assert _objects() == before
    Path("one", "bad").write_text("")
    _run("adapters", "add", "safe", "other", "one", "--bucket", BUCKET, *POLL, expect=6)
    Path("one", "bad").unlink()
    _run("adapters", "remove", "safe", "polite", *POLL)
    _run(*add, "one", "--bucket", BUCKET, *POLL)
    assert _objects() == before
    _run("delete", "safe", "--yes", *POLL)
    assert _objects() == {}


def test_an_archive_of_the_running_model_survives_a_failed_update(
    account: dict[str, str], fake: Local
) -> None:
    _write(account, model={"data": _folder("model")})
    _run("deploy", "--yes", *POLL)
    before = _objects()
    _write(account, model={"data": "model"}, env={"A": "1"})
    with enforced(EVERYTHING, denied=("sagemaker:UpdateEndpoint",)):
        result = _run("deploy", "--yes", *POLL, expect=5)
    assert "everything that this run made was removed again" in result.stderr
    assert _objects() == before
    Path("deploy.yaml").unlink()
    _run("delete", "safe", "--region", "us-east-1", "--yes", *POLL)
    assert _objects() == {}


def test_a_failure_after_an_update_leaves_the_config_that_the_endpoint_uses(
    account: dict[str, str], fake: Local
) -> None:
    _write(account, model={"id": "a/b"})
    _run("deploy", "--yes", *POLL)
    scaling = {"min": 1, "max": 3, "target_concurrency": 4}
    _write(account, model={"id": "a/b"}, env={"A": "1"}, scaling=scaling)
    with enforced(EVERYTHING, denied=("application-autoscaling:PutScalingPolicy",)):
        result = _run("deploy", "--yes", *POLL, expect=5)
    assert "in use by now, so it stays: model safe-" in result.stderr
    assert "removed again: scalable target endpoint/safe/variant/AllTraffic" in result.stderr
    record = fake.sagemaker.describe_endpoint(EndpointName="safe")
    fake.sagemaker.describe_endpoint_config(EndpointConfigName=record["EndpointConfigName"])
    _run("deploy", "--yes", *POLL)
    assert "nothing to do" in _run("plan").stdout
    _write(account, model={"id": "a/b"}, env={"A": "1"}, scaling=scaling | {"max": 5})
    steps = json.loads(_run("plan", "--json").stdout)["steps"]
    assert [step["operation"] for step in steps] == ["register_scalable_target"]
    _run("delete", "safe", "--yes", *POLL)


def test_a_scaling_that_fails_gets_its_old_values_back(
    account: dict[str, str], fake: Local
) -> None:
    scaling = {"min": 1, "max": 3, "target_concurrency": 4}
    _write(account, model={"id": "a/b"}, scaling=scaling)
    _run("deploy", "--yes", *POLL)
    with enforced(EVERYTHING, denied=("application-autoscaling:PutScalingPolicy",)):
        _run("scale", "safe", "--min", "2", "--max", "9", "--target", "8", *POLL, expect=5)
    client = boto3.client("application-autoscaling")
    [target] = client.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    assert (target["MinCapacity"], target["MaxCapacity"]) == (1, 3)
    _run("delete", "safe", "--yes", *POLL)


def test_copies_are_those_of_the_model_and_never_of_an_adapter(
    account: dict[str, str], fake: Local
) -> None:
    _write(account, model={"id": "a/b"}, component={})
    _run("deploy", "--yes", *POLL)
    _run("adapters", "add", "safe", "a-first", _folder("one"), "--bucket", BUCKET, *POLL)
    _run("scale", "safe", "--copies", "2", *POLL)
    described = fake.sagemaker.describe_inference_component(InferenceComponentName="safe-model")
    assert described["RuntimeConfig"]["DesiredCopyCount"] == 2
    scale = ("scale", "safe", "--copies", "2", "--component")
    assert "an adapter, which scales with its base; use safe-model" in (
        _run(*scale, "a-first", expect=2).stderr
    )
    assert "it has: safe-model" in _run(*scale, "nobody", expect=4).stderr
    extra = {"ComputeResourceRequirements": {"MinMemoryRequiredInMb": 128}}
    model = fake.sagemaker.list_models(NameContains="safe")["Models"][0]["ModelName"]
    fake.sagemaker.create_inference_component(
        InferenceComponentName="second", EndpointName="safe", VariantName="AllTraffic",
        Specification={"ModelName": model} | extra, RuntimeConfig={"CopyCount": 1},
    )  # fmt: skip
    refused = _run("scale", "safe", "--copies", "3", *POLL, expect=2).stderr
    assert "--component: safe has safe-model, second" in refused
    assert "removed" not in refused
    _run("delete", "safe", "--yes", *POLL)


def test_the_hint_after_a_deployment_is_a_command_that_works(
    account: dict[str, str], fake: Local, tmp_path: Path
) -> None:
    _write(account, model={"id": "a/b"}, component={})
    hint = _run("deploy", "--yes", *POLL).stdout.rpartition("try: sagemaker_deploy ")[2].split()
    Path("deploy.yaml").rename("elsewhere.yaml")
    _run(*hint)
    missing = _run("invoke", "safe", "Hello", "--region", "us-east-1", expect=5)
    assert "hint: add --component" in missing.stderr
    _run("delete", "safe", "--region", "us-east-1", "--yes", *POLL)

    _write(account, name="many", model={"data": f"s3://{BUCKET}/many/"}, multi_model=True)
    (tmp_path / "m").mkdir()
    pack(tmp_path / "m", None, tmp_path / "a.tar.gz")
    boto3.client("s3").upload_file(str(tmp_path / "a.tar.gz"), BUCKET, "many/a.tar.gz")
    text = _run("deploy", "--yes", *POLL).stdout.rpartition("try: sagemaker_deploy ")[2]
    _run(*text.replace("<archive below model.data>", "a.tar.gz").split())
    assert "hint: add --target-model" in _run("invoke", "many", "Hello", expect=5).stderr
    _run("delete", "many", "--yes", *POLL)
