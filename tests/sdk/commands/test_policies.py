"""Every command under an evaluator that knows only the policy that `plan --policies` prints."""

import json
from pathlib import Path
from typing import Any

import boto3
import yaml

from sagemaker_deploy import config as configuration
from sagemaker_deploy.plan.permissions import deployer, execution
from tests.sdk.aws_account import BUCKET
from tests.sdk.commands.command_line import run_command
from tests.support.aws.iam import ACCOUNT, REGION, Evaluator, enforced, sagemaker_arn


def _write(folder: Path, account: dict[str, str], **changes: Any) -> dict[str, Any]:
    """Write deploy.yaml and return the policies that it needs."""
    values = {"name": "least", "instance_type": "ml.c7i.2xlarge", "region": REGION} | account
    (folder / "deploy.yaml").write_text(yaml.safe_dump(values | changes))
    planned = json.loads(run_command("plan", "--json").stdout)
    return dict(planned["policies"])


def _model_folder(folder: Path) -> str:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    return str(folder / "model")


def test_the_printed_policy_suffices_for_endpoints(
    tmp_path: Path, account: dict[str, str], fake: Any
) -> None:
    scaling = {"min": 1, "max": 3, "target_concurrency": 4}
    night = {"night": {"at": "cron(0 20 * * ? *)", "max": 2}}
    boto3.client("secretsmanager").create_secret(Name="least", SecretString="hf_hidden")
    changes: dict[str, Any] = {
        "model": {"data": _model_folder(tmp_path)},
        "scaling": scaling | {"schedules": night},
        "monitoring": {},
        "secrets": {"HF_TOKEN": "least"},
    }
    printed = _write(tmp_path, account, **changes)
    boto3.client("logs").create_log_group(logGroupName="/aws/sagemaker/Endpoints/least")
    with enforced(printed["deployer"]) as evaluator:
        poll = ("--poll", "0.1")
        run_command("plan")
        run_command("deploy", "--yes", *poll)
        run_command("deploy", "--yes", *poll)
        run_command("invoke", "least", "Hello")
        run_command("invoke", "least", "Hello", "--stream")
        run_command("bench", "least", "--clients", "1", "--requests", "1")
        run_command("status", "least")
        run_command("logs", "least")
        run_command("scale", "least", "--instances", "2", *poll)
        run_command("scale", "least", "--min", "1", "--max", "2", "--target", "9", *poll)
        run_command("scale", "least", "--off", *poll)
        run_command("update", "--yes", "--set", "env.A='1'", *poll)
        run_command("deploy", "--yes", "--set", "scaling.schedules={}", *poll)
        run_command("pause", "least", "--yes", *poll)
        run_command("resume", "least", "--yes", *poll)
        run_command("delete", "least", "--yes", *poll)
    assert not evaluator.refused
    assert _another_deployments(evaluator) == []


def test_the_printed_policy_suffices_for_components(
    tmp_path: Path, account: dict[str, str], fake: Any
) -> None:
    printed = _write(tmp_path, account, name="parts", model={"id": "a/b"}, component={})
    (tmp_path / "polite").mkdir()
    (tmp_path / "polite" / "adapter_config.json").write_text("{}")
    boto3.client("logs").create_log_group(
        logGroupName="/aws/sagemaker/InferenceComponents/parts-model"
    )
    with enforced(printed["deployer"]) as evaluator:
        poll = ("--poll", "0.1")
        run_command("deploy", "--yes", *poll)
        run_command("adapters", "add", "parts", "any-name", "polite", "--bucket", BUCKET, *poll)
        (tmp_path / "polite" / "adapter_config.json").write_text('{"r": 1}')
        update = ("adapters", "update", "parts", "any-name", "polite")
        run_command(*update, "--bucket", BUCKET, *poll)
        run_command("adapters", "rollback", "parts", "any-name", *poll)
        run_command("adapters", "list", "parts")
        run_command("invoke", "parts", "x", "--component", "any-name")
        run_command("invoke", "parts", "x", "--stream")
        run_command("logs", "parts", "--component", "parts-model")
        run_command("scale", "parts", "--copies", "2", *poll)
        run_command("pause", "parts", "--yes", *poll)
        run_command("resume", "parts", "--yes", *poll)
        run_command("adapters", "remove", "parts", "any-name", *poll)
        run_command("delete", "parts", "--yes", *poll)
    assert not evaluator.refused


def test_an_asynchronous_call_works_with_the_printed_policy(
    tmp_path: Path, account: dict[str, str], fake: Any
) -> None:
    output = {"output": f"s3://{BUCKET}/least-out", "failures": f"s3://{BUCKET}/least-failed"}
    printed = _write(tmp_path, account, name="later", model={"id": "a/b"}, asynchronous=output)
    # Here the container runs in this process, so its role's policy is needed, too.
    with enforced(printed["deployer"], printed["execution"]) as evaluator:
        run_command("deploy", "--yes", "--poll", "0.1")
        assert run_command("async", "later", "Hello", "--poll", "0.1").stdout.strip()
        run_command("delete", "later", "--yes", "--poll", "0.1")
    assert not evaluator.refused


def _another_deployments(evaluator: Evaluator) -> list[str]:
    """Which resources of a deployment `least2` the policy would allow, too."""
    asks = [(action, resource) for action, resource, _ in evaluator.asked]
    others = {
        (action, resource.replace("least", "least2"))
        for action, resource in asks
        if ":sagemaker:" in resource and "/least" in resource
    }
    return [resource for action, resource in others if evaluator.allows(action, resource, {})]


def test_a_deployment_whose_name_begins_alike_is_out_of_reach(account: dict[str, str]) -> None:
    config = configuration.parse(account | {"name": "chat", "instance_type": "ml.g5.xlarge",
                                            "model": {"id": "a/b"}})  # fmt: skip
    evaluator = Evaluator([deployer.deployer(config, REGION, ACCOUNT)])
    action = "sagemaker:DeleteEndpoint"
    assert evaluator.allows(action, sagemaker_arn("endpoint", "chat"), {})
    assert not evaluator.allows(action, sagemaker_arn("endpoint", "chat2"), {})
    theirs = {"aws:ResourceTag/sagemaker-deploy": "chat2"}
    component = sagemaker_arn("inference-component", "chat2-model")
    assert not evaluator.allows("sagemaker:DeleteInferenceComponent", component, theirs)


def test_keys_and_repositories_of_other_accounts_are_named(account: dict[str, str]) -> None:
    image = "999999999999.dkr.ecr.eu-west-1.amazonaws.com/llm:1"
    values = account | {"name": "chat", "instance_type": "ml.g5.xlarge", "image": image,
                        "model": {"id": "a/b"}, "kms_key": "alias/own"}  # fmt: skip
    config = configuration.parse(values)
    text = json.dumps(deployer.deployer(config, REGION, ACCOUNT))
    assert "arn:aws:ecr:eu-west-1:999999999999:repository/llm" in text
    assert '"kms:CreateGrant"' in text
    assert '{"kms:ResourceAliases": "alias/own"}' in text
    document = execution.repository(config, ACCOUNT)
    assert document
    assert document["Statement"][0]["Principal"] == {"AWS": config.role}
    assert execution.repository(configuration.parse(values | account), ACCOUNT) is None


def test_the_role_for_scaling_can_be_made_for_scaling_only(account: dict[str, str]) -> None:
    values = account | {"name": "chat", "instance_type": "ml.g5.xlarge", "model": {"id": "a/b"}}
    document = deployer.deployer(configuration.parse(values), REGION, ACCOUNT)
    [statement] = [
        one for one in document["Statement"] if one["Action"] == ["iam:CreateServiceLinkedRole"]
    ]
    assert statement["Condition"]["StringEquals"]["iam:AWSServiceName"].startswith("sagemaker.")
    assert "*" not in statement["Resource"]
