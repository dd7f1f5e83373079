"""`why` over moto's logs and the local endpoint, and offline."""

import json
import time
from pathlib import Path

import boto3
import yaml

from tests.sdk.commands.command_line import run_command
from tests.support.aws.local_sagemaker import DEMO_MODEL, Local


def _write_log(group: str, *lines: str) -> None:
    client = boto3.client("logs")
    client.create_log_group(logGroupName=group)
    client.create_log_stream(logGroupName=group, logStreamName="AllTraffic/i-1")
    now = int(time.time() * 1000)
    events = [{"timestamp": now + n, "message": line} for n, line in enumerate(lines)]
    client.put_log_events(logGroupName=group, logStreamName="AllTraffic/i-1", logEvents=events)


def test_a_failed_endpoint_is_explained_by_its_log(
    tmp_path: Path, account: dict[str, str], fake: Local
) -> None:
    fake.sagemaker.create_model(
        ModelName="sick",
        PrimaryContainer={"Image": account["image"], "ModelDataUrl": "s3://models/none.tar.gz"},
    )
    variant = {"VariantName": "AllTraffic", "ModelName": "sick", "InitialInstanceCount": 1}
    fake.sagemaker.create_endpoint_config(
        EndpointConfigName="sick",
        ProductionVariants=[variant | {"InstanceType": "ml.g5.xlarge"}],
    )
    fake.sagemaker.create_endpoint(EndpointName="sick", EndpointConfigName="sick")
    fake.settle("sick")
    _write_log("/aws/sagemaker/Endpoints/sick", "loading", "No space left on device")
    diagnosis = json.loads(run_command("why", "sick", "--region", "us-east-1", "--json").stdout)
    assert diagnosis["status"] == "Failed"
    assert diagnosis["name"] == "disk"
    assert diagnosis["shown_by"] == "No space left on device"
    text = run_command("why", "sick", "--region", "us-east-1").stdout
    assert "cause:  the disk is full" in text
    assert "remedy: set volume_gb" in text
    missing = run_command("why", "nobody", "--region", "us-east-1", expect=4).stderr
    assert "does not exist in us-east-1 and has left no log" in missing

    _write_log("/aws/sagemaker/Endpoints/broken-why", "CUDA out of memory")
    values = {"name": "broken-why", "instance_type": "ml.c7i.2xlarge", "region": "us-east-1"}
    values |= account | {"model": {"data": "s3://models/none.tar.gz"}}  # type: ignore[dict-item]
    Path("deploy.yaml").write_text(yaml.safe_dump(values))
    failed = run_command("deploy", "--yes", "--poll", "0.1", expect=6).stderr
    assert "hint: the model and its KV cache do not fit" in failed

    # A component's containers write to a group of their own.
    _write_log("/aws/sagemaker/InferenceComponents/in-parts-model", "CUDA out of memory")
    values |= {"name": "in-parts", "component": {"memory_mb": 1024}}  # type: ignore[dict-item]
    Path("deploy.yaml").write_text(yaml.safe_dump(values))
    failed = run_command("deploy", "--yes", "--poll", "0.1", expect=6).stderr
    assert "hint: the model and its KV cache do not fit" in failed


def test_a_log_in_a_file_needs_no_account(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('{"message": "the container ends with exit code 3: no weights in /m"}\n')
    text = run_command("why", "--log", str(log)).stdout
    assert "cause:  no weights in /m" in text
    assert "no such file" in run_command("why", "--log", str(tmp_path / "none"), expect=2).stderr
    reason = "Image size 13279248421 is greater than supported size 10737418240"
    assert "takes 10737418240" in run_command("why", "--reason", reason).stdout


def test_our_container_logs_why_it_exits(local, tmp_path: Path) -> None:
    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "config.json").write_text((DEMO_MODEL / "config.json").read_text())
    local.deploy("halfway", {"Environment": {"HF_MODEL_ID": str(broken)}})
    record = local.sagemaker.describe_endpoint(EndpointName="halfway")
    assert record["EndpointStatus"] == "Failed"
    assert "the container ends with exit code 3: " in record["FailureReason"]
    local.sagemaker.delete_endpoint(EndpointName="halfway")
