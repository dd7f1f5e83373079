"""Failed and repeated commands leave these alone: archives in use, scaling, other components."""

import json
import time
from pathlib import Path
from typing import Any

import boto3
import yaml

from sagemaker_deploy.execute import pack
from tests.sdk.aws_account import BUCKET
from tests.sdk.commands.command_line import run_command
from tests.support.aws.iam import EVERYTHING, enforced
from tests.support.aws.local_sagemaker import Local

POLL = ("--poll", "0.1")


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


def test_a_taken_adapter_name_keeps_the_archive_in_use(
    account: dict[str, str], fake: Local
) -> None:
    _write(account, model={"id": "a/b"}, component={})
    run_command("deploy", "--yes", *POLL)
    add = ("adapters", "add", "safe", "polite")
    run_command(*add, _folder("one"), "--bucket", BUCKET, *POLL)
    before = _objects()
    assert len(before) == 1
    refused = run_command(*add, _folder("two", '{"other": 1}'), "--bucket", BUCKET, *POLL, expect=2)
    assert "ADAPTER: safe has a component polite; use `adapters update`" in refused.stderr
    assert _objects() == before

    # The service refuses it, too, where the listing has not shown the adapter yet.
    Path("two", "bad").write_text("")
    failed = ("adapters", "add", "safe", "worse", "two", "--bucket", BUCKET, *POLL)
    assert "removed again" in run_command(*failed, expect=6).stderr
    assert _objects() == before
    Path("one", "bad").write_text("")
    run_command("adapters", "add", "safe", "other", "one", "--bucket", BUCKET, *POLL, expect=6)
    Path("one", "bad").unlink()
    run_command("adapters", "remove", "safe", "polite", *POLL)
    run_command(*add, "one", "--bucket", BUCKET, *POLL)
    assert _objects() == before
    run_command("delete", "safe", "--yes", *POLL)
    assert _objects() == {}


def _archive_of(fake: Local, adapter: str) -> str:
    deadline = time.monotonic() + 30
    while True:
        record = fake.sagemaker.describe_inference_component(InferenceComponentName=adapter)
        if record["InferenceComponentStatus"] == "InService":
            break
        assert time.monotonic() < deadline, record
        time.sleep(0.05)
    return str(record["Specification"]["Container"]["ArtifactUrl"])


def test_an_adapter_is_updated_in_place_and_rolled_back(
    account: dict[str, str], fake: Local
) -> None:
    _write(account, model={"id": "a/b"}, component={})
    run_command("deploy", "--yes", *POLL)
    adapters, upload = ("adapters",), ("--bucket", BUCKET, *POLL)
    run_command(*adapters, "add", "safe", "kind", _folder("one"), "--prefix", *upload)
    first = _archive_of(fake, "safe-kind")
    never = run_command(*adapters, "rollback", "safe", "kind", *POLL, expect=4).stderr
    assert "has not been updated" in never
    again = run_command(*adapters, "update", "safe", "kind", "one", *upload).stdout
    assert "nothing to do" in again

    run_command(*adapters, "update", "safe", "kind", _folder("two", '{"other": 1}'), *upload)
    second = _archive_of(fake, "safe-kind")
    assert second != first
    Path("two", "bad").write_text("")
    failed = run_command(*adapters, "update", "safe", "kind", "two", *upload, expect=6).stderr
    assert "not a model" in failed
    assert _archive_of(fake, "safe-kind") == second

    run_command(*adapters, "rollback", "safe", "kind", *POLL)
    assert _archive_of(fake, "safe-kind") == first
    run_command(*adapters, "rollback", "safe", "kind", *POLL)
    assert _archive_of(fake, "safe-kind") == second
    listed = json.loads(run_command(*adapters, "list", "safe", "--json").stdout)
    assert [(each["name"], each["archive"]) for each in listed] == [("safe-kind", second)]
    run_command("invoke", "safe", "x", "--component", "safe-kind")
    run_command(*adapters, "remove", "safe", "kind", *POLL)
    unknown = run_command(*adapters, "remove", "safe", "kind", *POLL, expect=4).stderr
    assert "safe has no adapter kind; it has: none" in unknown
    run_command("delete", "safe", "--yes", *POLL)


def test_a_failed_update_keeps_the_archive_in_use(account: dict[str, str], fake: Local) -> None:
    _write(account, model={"data": _folder("model")})
    run_command("deploy", "--yes", *POLL)
    before = _objects()
    _write(account, model={"data": "model"}, env={"A": "1"})
    with enforced(EVERYTHING, denied=("sagemaker:UpdateEndpoint",)):
        result = run_command("deploy", "--yes", *POLL, expect=5)
    assert "everything that this run made was removed again" in result.stderr
    assert _objects() == before
    Path("deploy.yaml").unlink()
    run_command("delete", "safe", "--region", "us-east-1", "--yes", *POLL)
    assert _objects() == {}


def test_a_failed_update_keeps_the_config_in_use(account: dict[str, str], fake: Local) -> None:
    _write(account, model={"id": "a/b"})
    run_command("deploy", "--yes", *POLL)
    scaling = {"min": 1, "max": 3, "target_concurrency": 4}
    _write(account, model={"id": "a/b"}, env={"A": "1"}, scaling=scaling)
    with enforced(EVERYTHING, denied=("application-autoscaling:PutScalingPolicy",)):
        result = run_command("deploy", "--yes", *POLL, expect=5)
    assert "in use by now, so it stays: model safe-" in result.stderr
    assert "removed again: scalable target endpoint/safe/variant/AllTraffic" in result.stderr
    record = fake.sagemaker.describe_endpoint(EndpointName="safe")
    fake.sagemaker.describe_endpoint_config(EndpointConfigName=record["EndpointConfigName"])
    run_command("deploy", "--yes", *POLL)
    assert "nothing to do" in run_command("plan").stdout
    _write(account, model={"id": "a/b"}, env={"A": "1"}, scaling=scaling | {"max": 5})
    steps = json.loads(run_command("plan", "--json").stdout)["steps"]
    assert [step["operation"] for step in steps] == ["register_scalable_target"]
    run_command("delete", "safe", "--yes", *POLL)


def test_a_scaling_that_fails_gets_its_old_values_back(
    account: dict[str, str], fake: Local
) -> None:
    scaling = {"min": 1, "max": 3, "target_concurrency": 4}
    _write(account, model={"id": "a/b"}, scaling=scaling)
    run_command("deploy", "--yes", *POLL)
    with enforced(EVERYTHING, denied=("application-autoscaling:PutScalingPolicy",)):
        run_command("scale", "safe", "--min", "2", "--max", "9", "--target", "8", *POLL, expect=5)
    client = boto3.client("application-autoscaling")
    [target] = client.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    assert (target["MinCapacity"], target["MaxCapacity"]) == (1, 3)
    run_command("delete", "safe", "--yes", *POLL)


def test_copies_are_those_of_the_model_and_never_of_an_adapter(
    account: dict[str, str], fake: Local
) -> None:
    _write(account, model={"id": "a/b"}, component={})
    run_command("deploy", "--yes", *POLL)
    run_command("adapters", "add", "safe", "a-first", _folder("one"), "--bucket", BUCKET, *POLL)
    run_command("scale", "safe", "--copies", "2", *POLL)
    described = fake.sagemaker.describe_inference_component(InferenceComponentName="safe-model")
    assert described["RuntimeConfig"]["DesiredCopyCount"] == 2
    scale = ("scale", "safe", "--copies", "2", "--component")
    assert "an adapter, which scales with its base; use safe-model" in (
        run_command(*scale, "a-first", expect=2).stderr
    )
    assert "it has: safe-model" in run_command(*scale, "nobody", expect=4).stderr
    extra = {"ComputeResourceRequirements": {"MinMemoryRequiredInMb": 128}}
    model = fake.sagemaker.list_models(NameContains="safe")["Models"][0]["ModelName"]
    fake.sagemaker.create_inference_component(
        InferenceComponentName="second", EndpointName="safe", VariantName="AllTraffic",
        Specification={"ModelName": model} | extra, RuntimeConfig={"CopyCount": 1},
    )  # fmt: skip
    refused = run_command("scale", "safe", "--copies", "3", *POLL, expect=2).stderr
    assert "--component: safe has safe-model, second" in refused
    assert "removed" not in refused
    run_command("delete", "safe", "--yes", *POLL)


def test_the_hint_after_a_deployment_is_a_command_that_works(
    account: dict[str, str], fake: Local, tmp_path: Path
) -> None:
    _write(account, model={"id": "a/b"}, component={})
    text = run_command("deploy", "--yes", *POLL).stdout
    hint = text.rpartition("try: sagemaker_deploy ")[2].split()
    Path("deploy.yaml").rename("elsewhere.yaml")
    run_command(*hint)
    missing = run_command("invoke", "safe", "Hello", "--region", "us-east-1", expect=5)
    assert "hint: add --component" in missing.stderr
    run_command("delete", "safe", "--region", "us-east-1", "--yes", *POLL)

    _write(account, name="many", model={"data": f"s3://{BUCKET}/many/"}, multi_model=True)
    (tmp_path / "m").mkdir()
    pack(tmp_path / "m", None, tmp_path / "a.tar.gz")
    boto3.client("s3").upload_file(str(tmp_path / "a.tar.gz"), BUCKET, "many/a.tar.gz")
    text = run_command("deploy", "--yes", *POLL).stdout.rpartition("try: sagemaker_deploy ")[2]
    run_command(*text.replace("<archive below model.data>", "a.tar.gz").split())
    assert "hint: add --target-model" in run_command("invoke", "many", "Hello", expect=5).stderr
    run_command("delete", "many", "--yes", *POLL)
