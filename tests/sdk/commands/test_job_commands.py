"""batch, async, adapters, scale, logs, bench: the real commands over moto's account."""

import csv
import io
import json
import time
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from sagemaker_deploy.execute import pack
from tests.sdk.aws_account import BUCKET
from tests.sdk.commands.command_line import run_command
from tests.support.aws.local_sagemaker import DEMO_MODEL, Local
from tests.support.models.archives import archive


def _write(folder: Path, account: dict[str, str], **changes: Any) -> str:
    values = {"name": "jobs", "instance_type": "ml.c7i.2xlarge", "region": "us-east-1"} | account
    path = folder / "jobs.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return str(path)


def test_a_batch_of_lines_is_answered_in_order(
    tmp_path: Path, account: dict[str, str], local: Local
) -> None:
    pack(DEMO_MODEL, None, tmp_path / "model.tar.gz")
    boto3.client("s3").upload_file(str(tmp_path / "model.tar.gz"), BUCKET, "demo/model.tar.gz")
    file = _write(tmp_path, account, model={"data": f"s3://{BUCKET}/demo/model.tar.gz"})
    words = ["Hello", "One", "Two"]
    bodies = [{"inputs": word, "parameters": {"max_new_tokens": 3}} for word in words]
    bodies.append({"inputs": "x", "parameters": {"temperature": -1}})
    source = tmp_path / "in.jsonl"
    source.write_text("".join(f"{json.dumps(body)}\n" for body in bodies))
    saved = tmp_path / "out.jsonl"
    options = ("--input", str(source), "--save", str(saved), "--poll", "0.2")
    failed = run_command("batch", "-f", file, *options, expect=7)
    assert "1 of 4 answers are errors; the first is line 4 of s3://models/" in failed.stderr
    assert "temperature" in failed.stderr
    responses = [json.loads(line) for line in saved.read_text().splitlines()]
    assert len(responses) == 4
    assert all("error" not in str(answer) for answer in responses[:3])


def test_csv_rows_are_answered_and_joined(
    tmp_path: Path, account: dict[str, str], local: Local
) -> None:
    storage = boto3.client("s3")
    pack(DEMO_MODEL, None, tmp_path / "model.tar.gz")
    storage.upload_file(str(tmp_path / "model.tar.gz"), BUCKET, "table/model.tar.gz")
    storage.put_object(Bucket=BUCKET, Key="table/in.csv", Body=b'inputs\n"Hello, you"\nOne\n')
    definition = {"Image": account["image"], "ModelDataUrl": f"s3://{BUCKET}/table/model.tar.gz"}
    local.sagemaker.create_model(ModelName="table", PrimaryContainer=definition)
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/table/in.csv"}}
    job: dict[str, Any] = {
        "TransformJobName": "table",
        "ModelName": "table",
        "BatchStrategy": "SingleRecord",  # each body but the first is without the header
        "TransformInput": {"DataSource": source, "ContentType": "text/csv", "SplitType": "Line"},
        "TransformOutput": {
            "S3OutputPath": f"s3://{BUCKET}/table/out", "Accept": "text/csv",
            "AssembleWith": "Line",
        },
        "TransformResources": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1},
        "DataProcessing": {"JoinSource": "Input"},
    }  # fmt: skip
    filtered = job | {"DataProcessing": {"InputFilter": "$.a"}}
    with pytest.raises(local.sagemaker.exceptions.ClientError, match=r"DataProcessing.InputFilter"):
        local.sagemaker.create_transform_job(**filtered)
    local.sagemaker.create_transform_job(**job)
    deadline = time.monotonic() + 120
    while (status := local.sagemaker.describe_transform_job(TransformJobName="table"))[
        "TransformJobStatus"
    ] == "InProgress" and time.monotonic() < deadline:
        time.sleep(0.2)
    assert status["TransformJobStatus"] == "Completed", status.get("FailureReason")
    body = storage.get_object(Bucket=BUCKET, Key="table/out/in.csv.out")["Body"].read().decode()
    header, *rows = list(csv.reader(io.StringIO(body, newline="")))
    assert header == ["inputs", "generated_text"]
    assert [row[0] for row in rows] == ["Hello, you", "One"]
    assert all(len(row) == 2 for row in rows)


def test_an_asynchronous_call_waits_for_its_answer(
    tmp_path: Path, account: dict[str, str], local: Local
) -> None:
    file = _write(
        tmp_path, account, name="slow", model={"id": str(DEMO_MODEL)},
        asynchronous={"output": f"s3://{BUCKET}/slow", "failures": f"s3://{BUCKET}/slow-failed"},
    )  # fmt: skip
    run_command("deploy", "-f", file, "--yes", "--poll", "0.2")
    assert run_command("async", "slow", "Hello", "--poll", "0.2").stdout.strip()
    body = tmp_path / "body.json"
    body.write_text('{"inputs": "Hello", "parameters": {"temperature": -1}}')
    failed = run_command("async", "slow", "--file", str(body), "--poll", "0.2", expect=7)
    assert "temperature" in failed.stderr
    run_command("delete", "slow", "--yes", "--poll", "0.2")


def test_adapters_are_added_listed_called_and_removed(
    tmp_path: Path, account: dict[str, str], fake: Local
) -> None:
    # A fake container says what it was given; test_adapter_components has the real one.
    file = _write(tmp_path, account, name="lora", model={"id": "a/b"}, component={})
    run_command("deploy", "-f", file, "--yes", "--poll", "0.2")
    (tmp_path / "polite").mkdir()
    (tmp_path / "polite" / "adapter_config.json").write_text("{}")
    polite = str(tmp_path / "polite")
    add = ("adapters", "add", "lora", "polite", polite, "--poll", "0.2")
    assert "--bucket: needed" in run_command(*add, expect=2).stderr
    run_command(*add, "--bucket", BUCKET)
    rows = json.loads(run_command("adapters", "list", "lora", "--json").stdout)
    archive_url = rows[0].pop("archive")
    assert archive_url.startswith(f"s3://{BUCKET}/sagemaker-deploy/lora/adapters/polite-")
    assert rows == [{"name": "polite", "base": "lora-model", "status": "InService"}]
    received = json.loads(
        run_command("invoke", "lora", "x", "--component", "polite", "--json").stdout
    )
    assert received["x-amzn-sagemaker-adapter-identifier"] == "polite"
    archive(tmp_path / "bad.tar.gz", bad="")
    boto3.client("s3").upload_file(str(tmp_path / "bad.tar.gz"), BUCKET, "bad.tar.gz")
    bad = ("adapters", "add", "lora", "bad", f"s3://{BUCKET}/bad.tar.gz", "--poll", "0.2")
    assert "not a model" in run_command(*bad, expect=6).stderr
    assert len(json.loads(run_command("adapters", "list", "lora", "--json").stdout)) == 1
    run_command("adapters", "remove", "lora", "polite", "--poll", "0.2")
    run_command("adapters", "remove", "lora", "polite", expect=4)
    run_command("scale", "lora", "--copies", "0", "--poll", "0.2")
    assert (
        "no capacity"
        in run_command("invoke", "lora", "x", "--component", "lora-model", expect=5).stderr
    )
    run_command("delete", "lora", "--yes", "--poll", "0.2")


def test_an_endpoint_is_scaled_by_hand_and_by_itself(account: dict[str, str], demo: str) -> None:
    run_command("scale", demo, "--instances", "2", "--poll", "0.2")
    status = json.loads(run_command("status", demo, "--json").stdout)
    assert status["endpoint"]["ProductionVariants"][0]["DesiredInstanceCount"] == 2
    run_command("scale", demo, "--min", "1", "--max", "4", "--target", "8")
    client = boto3.client("application-autoscaling")
    # moto keeps the policies of targets that are gone, so only this endpoint's are asked for.
    resource = f"endpoint/{demo}/variant/AllTraffic"
    policies = client.describe_scaling_policies(ServiceNamespace="sagemaker", ResourceId=resource)[
        "ScalingPolicies"
    ]
    assert [policy["PolicyName"] for policy in policies] == [f"{demo}-track"]
    run_command("scale", demo, "--off")
    targets = client.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    assert targets == []
    assert "no inference components" in run_command("scale", demo, "--copies", "1", expect=2).stderr
    run_command("scale", "nobody", "--instances", "1", expect=4)


def test_logs_are_printed_oldest_first(account: dict[str, str]) -> None:
    client = boto3.client("logs")
    group, stream = "/aws/sagemaker/Endpoints/talker", "AllTraffic/i-1"
    client.create_log_group(logGroupName=group)
    client.create_log_stream(logGroupName=group, logStreamName=stream)
    now = int(time.time() * 1000)
    events = [
        {"timestamp": now - 7_200_000, "message": "long ago"},
        {"timestamp": now - 2000, "message": "loading"},
        {"timestamp": now - 1000, "message": "ready"},
    ]
    client.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)
    lines = run_command("logs", "talker", "--since", "1h").stdout.splitlines()
    assert [line.split()[-1] for line in lines] == ["loading", "ready"]
    assert "no container has written yet" in run_command("logs", "nobody", expect=4).stderr
    assert "--since" in run_command("logs", "talker", "--since", "soon", expect=2).stderr


def test_bench_draws_a_picture(demo: str) -> None:
    arguments = ("bench", demo, "--clients", "1,2", "--requests", "4", "--max-tokens", "4")
    text = run_command(*arguments).stdout
    assert "#" in text
    summaries = json.loads(run_command(*arguments, "--json").stdout)
    assert [
        (summary["clients"], summary["requests"], summary["failed"]) for summary in summaries
    ] == [
        (1, 4, 0),
        (2, 4, 0),
    ]
    assert summaries[0]["first_text_s"]["p50"] <= summaries[0]["latency_s"]["p50"]
    assert summaries[0]["tokens_per_s"] > 0
