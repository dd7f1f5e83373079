"""plan, deploy, invoke, status, update, delete: the real commands, moto's account, a real model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from click.testing import Result

from sagemaker_deploy.commands.main import main
from tests.sdk.aws_account import BUCKET
from tests.sdk.commands.command_line import run_command
from tests.support.aws.local_sagemaker import DEMO_MODEL, Local
from tests.support.aws.outside import Trap


@pytest.fixture
def folder(tmp_path: Path, account: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _write(folder: Path, account: dict[str, str], **changes: Any) -> None:
    values = {"name": "chat", "instance_type": "ml.c7i.2xlarge", "region": "us-east-1"} | account
    (folder / "deploy.yaml").write_text(yaml.safe_dump(values | changes))


def _deploy(*arguments: str, expect: int = 0) -> Result:
    return run_command("deploy", "--yes", "--poll", "0.2", *arguments, expect=expect)


def _delete(name: str = "chat") -> Result:
    return run_command("delete", name, "--yes", "--poll", "0.2")


def _num_objects() -> int:
    num_objects: int = boto3.client("s3").list_objects_v2(Bucket=BUCKET)["KeyCount"]
    return num_objects


def test_a_folder_becomes_an_endpoint_and_nothing_remains_of_it(
    folder: Path, account: dict[str, str], local: Local
) -> None:
    before = _num_objects()  # of other tests
    _write(folder, account, model={"data": str(DEMO_MODEL)})
    plan = json.loads(run_command("plan", "--json").stdout)
    assert [step["operation"] for step in plan["steps"]] == [
        "upload", "create_model", "create_endpoint_config", "create_endpoint",
    ]  # fmt: skip
    assert any(fact.startswith("memory: weights") for fact in plan["facts"])
    assert _num_objects() == before

    _deploy()
    assert "nothing to do" in _deploy().stdout
    assert run_command("invoke", "chat", "Hello", "--max-tokens", "8").stdout.strip()
    answer = run_command("invoke", "chat", "Hello", "--generate", "--max-tokens", "4").stdout
    streamed = run_command("invoke", "chat", "Hello", "--generate", "--max-tokens", "4", "--stream")
    assert streamed.stdout.strip() in answer
    status = json.loads(run_command("status", "--json").stdout)
    assert status["endpoint"]["EndpointStatus"] == "InService"
    assert "AllTraffic" in run_command("status").stdout

    _write(folder, account, model={"data": str(DEMO_MODEL)}, env={"MAX_TOTAL_TOKENS": "64"})
    run_command("update", "--yes", "--poll", "0.2")
    assert run_command("invoke", "chat", "x " * 200, expect=7).stderr.startswith(
        'error: chat answered 400: {"error":{"message":"`messages` must have less than 63 tokens'
    )

    assert "delete the model" in run_command("delete", "chat", "--dry-run").stdout
    _delete()
    for listing, field in (("list_models", "Models"), ("list_endpoint_configs", "EndpointConfigs")):
        assert getattr(local.sagemaker, listing)(NameContains="chat")[field] == []
    assert _num_objects() == before
    run_command("status", "chat", expect=4)


def test_a_failed_endpoint_is_removed(folder: Path, account: dict[str, str], local: Local) -> None:
    _write(folder, account, name="broken", model={"id": "/no/such/model"})
    result = _deploy(expect=6)
    assert "/no/such/model" in result.stderr
    assert "everything that this run made was removed again" in result.stderr
    assert local.sagemaker.list_models(NameContains="broken")["Models"] == []
    assert local.sagemaker.list_endpoints(NameContains="broken")["Endpoints"] == []


def test_a_half_made_endpoint_of_an_earlier_try_is_replaced(
    folder: Path, account: dict[str, str], local: Local
) -> None:
    local.deploy("again", {"Environment": {"HF_MODEL_ID": "/no/such/model"}})
    _write(folder, account, name="again", model={"id": str(DEMO_MODEL)})
    assert "that an earlier try left failed" in run_command("plan").stdout
    _deploy()
    run_command("invoke", "again", "Hello", "--max-tokens", "2")
    _delete("again")


def test_a_missing_image_and_role_are_two_lines(folder: Path, account: dict[str, str]) -> None:
    image = account["image"].replace(":1", ":2")
    _write(folder, account, image=image, role=account["role"] + "X", model={"id": "a/b"})
    lines = run_command("deploy", "--yes", expect=2).stderr.strip().splitlines()
    assert lines[0] == f"error: image: {image} is not in ECR; push it first, or correct the tag"
    assert lines[1].startswith("error: role:")
    assert lines[1].endswith("prints the documents to make it")


def test_a_component_is_deployed_called_and_deleted(
    folder: Path, account: dict[str, str], local: Local
) -> None:
    model = {"id": str(DEMO_MODEL)}
    _write(folder, account, name="parts", model=model, component={"memory_mb": 2048})
    _deploy()
    run_command("invoke", "parts", "Hello", "--max-tokens", "2")
    assert "parts-model" in run_command("status").stdout
    _delete("parts")
    assert local.sagemaker.list_inference_components()["InferenceComponents"] == []


def test_scaling_to_zero_is_registered_and_removed(
    folder: Path, account: dict[str, str], local: Local
) -> None:
    # moto does not know the dimension of inference components, so this scales an async variant.
    scaling = boto3.client("application-autoscaling")
    _write(
        folder, account, name="later", model={"id": str(DEMO_MODEL)},
        asynchronous={"output": f"s3://{BUCKET}/answers"},
        scaling={"min": 0, "max": 3, "target_concurrency": 4},
    )  # fmt: skip
    _deploy()
    targets = scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    assert [(target["MinCapacity"], target["MaxCapacity"]) for target in targets] == [(0, 3)]
    [alarm] = boto3.client("cloudwatch").describe_alarms(AlarmNames=["later-wake"])["MetricAlarms"]
    assert ":scalingPolicy:" in alarm["AlarmActions"][0]
    assert "endpoint/later/variant/AllTraffic" in run_command("status").stdout
    _delete("later")
    targets = scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    assert targets == []
    assert boto3.client("cloudwatch").describe_alarms()["MetricAlarms"] == []


def test_a_secret_reaches_the_container_and_not_the_plan(
    folder: Path, account: dict[str, str], local: Local
) -> None:
    boto3.client("secretsmanager").create_secret(Name="hub", SecretString="hf_hidden")
    _write(
        folder, account, name="quiet", model={"id": str(DEMO_MODEL)}, secrets={"HF_TOKEN": "hub"}
    )
    assert "hf_hidden" not in run_command("plan", "--json").stdout
    _deploy()
    [model] = local.sagemaker.list_models(NameContains="quiet")["Models"]
    described = local.sagemaker.describe_model(ModelName=model["ModelName"])
    assert described["PrimaryContainer"]["Environment"]["HF_TOKEN"] == "hf_hidden"
    _delete("quiet")


def test_a_wrong_body_ends_with_the_containers_error(
    folder: Path, account: dict[str, str], demo: str
) -> None:
    file = folder / "body.json"
    file.write_text('{"inputs": "Hello", "parameters": {"temperature": -1}}')
    result = run_command("invoke", demo, "--file", str(file), expect=7)
    assert "temperature" in result.stderr
    assert "hint: see the container's log" in result.stderr


def test_an_unknown_endpoint_is_not_found(folder: Path, local: Local) -> None:
    assert "nobody" in run_command("invoke", "nobody", "Hello", expect=4).stderr


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_teaches(command: str) -> None:
    text = run_command(command, "--help").stdout
    assert len(text.split("Options:")[0].split()) > 15, "says too little"


def test_the_module_is_a_command() -> None:
    import subprocess

    argv = [sys.executable, "-m", "sagemaker_deploy", "--help"]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert "Exit codes" in shown


def test_the_staging_step_deploys_and_invokes_the_image(
    folder: Path, account: dict[str, str], local: Local
) -> None:
    _write(folder, account, name="staging", image="of-another-day", model={"id": str(DEMO_MODEL)})
    env = os.environ | {"STAGING_CONFIG": str(folder / "deploy.yaml"), "STAGING_POLL": "0.2"}
    env |= {"IMAGE_URI": account["image"]}
    script = DEMO_MODEL.parents[1] / "image" / "staging.sh"
    done = subprocess.run([script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deep learning" in done.stdout.lower()
    (model,) = local.sagemaker.list_models(NameContains="staging")["Models"]
    described = local.sagemaker.describe_model(ModelName=model["ModelName"])
    assert described["PrimaryContainer"]["Image"] == account["image"]
    _delete("staging")


def test_a_plan_offline_asks_nobody(
    folder: Path, account: dict[str, str], outside: Trap, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside.asked.clear()
    for name, value in outside.variables().items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    _write(folder, account, model={"data": str(DEMO_MODEL)})
    text = run_command("plan", "--offline", "--policies").stdout
    assert "create the endpoint" in text
    assert "memory: weights" in text
    assert ":123456789012:endpoint/chat" in text
    _write(folder, account, model={"data": "s3://models/chat/"}, instance_type="ml.c7i.2xlrge")
    wrong = run_command("plan", "--offline", expect=2).stderr
    assert "did you mean ml.c7i.2xlarge" in wrong
    refused = run_command("plan", "--set", "instance_type=ml.c7i.2xlarge", expect=5).stderr
    assert "`plan --offline` needs none" in refused
    assert outside.asked == []
