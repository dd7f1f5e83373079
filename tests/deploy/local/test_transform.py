"""Batch transform: cutting, joining, and a whole job over a fake container."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagemaker_deploy.local.control_plane import batches
from sagemaker_deploy.local.control_plane.batches import TransformOptions
from tests.support.aws.local_sagemaker import IMAGE, Local
from tests.support.servers import wait_for

LINES = b"one\ntwo\nthree\n"


def _bodies(how: TransformOptions, split: str = "Line", data: bytes = LINES) -> list[bytes]:
    return list(batches.bodies(data, split, how))


def test_many_records_share_a_body() -> None:
    assert _bodies(TransformOptions()) == [LINES]


def test_a_single_record_has_a_body_of_its_own() -> None:
    assert _bodies(TransformOptions(strategy="SINGLE_RECORD")) == [b"one", b"two", b"three"]


def test_without_splitting_the_object_is_the_body() -> None:
    assert _bodies(TransformOptions(), split="None") == [LINES]


def test_a_record_over_the_payload_is_refused() -> None:
    with pytest.raises(ValueError, match="exceeds MaxPayloadInMB"):
        _bodies(TransformOptions(payload_mb=1), data=b"x" * (1024 * 1024 + 1))


@given(st.lists(st.binary(min_size=1, max_size=400_000), max_size=12))
def test_bodies_are_within_the_payload_and_lose_nothing(records: list[bytes]) -> None:
    records = [b"r" + record.translate(None, b"\r\n\x0b\x0c\x1c\x1d\x1e\x85") for record in records]
    cut = _bodies(TransformOptions(payload_mb=1), data=b"\n".join(records))
    assert all(len(body) <= 1024 * 1024 for body in cut)
    assert b"".join(cut).split() == b"\n".join(records).split()


def test_the_jobs_settings_win_over_the_containers() -> None:
    container = b'{"MaxConcurrentTransforms": 8, "BatchStrategy": "SINGLE_RECORD"}'
    how = batches.transform_options({"BatchStrategy": "MultiRecord"}, container)
    assert how == TransformOptions(8, "MULTI_RECORD", 6)


def test_a_job_answers_every_object_and_stops_its_container(
    fake_local: Local, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(LINES)
    (tmp_path / "in" / "b.jsonl").write_bytes(b"four\n")
    record = _job(fake_local, tmp_path, "application/jsonlines", strategy="SingleRecord")
    assert record["TransformJobStatus"] == "Completed"
    assert (tmp_path / "out" / "a.jsonl.out").read_text() == "ONE\nTWO\nTHREE\n"
    assert (tmp_path / "out" / "b.jsonl.out").read_text() == "FOUR\n"


def test_a_refused_record_fails_the_job_with_its_error(fake_local: Local, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.json").write_text('{"status": 422, "answer": "too long"}')
    record = _job(fake_local, tmp_path, "application/json")
    assert record["TransformJobStatus"] == "Failed"
    assert "422: too long" in record["FailureReason"]


def _job(local: Local, folder: Path, content_type: str, strategy: str = "MultiRecord") -> dict:
    name = folder.name.replace("_", "-")[:60]
    local.sagemaker.create_model(
        ModelName=name,
        PrimaryContainer={"Image": IMAGE},
        ExecutionRoleArn="arn:aws:iam::000000000000:role/x",
    )
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"file://{folder}/in"}}
    local.sagemaker.create_transform_job(
        TransformJobName=name,
        ModelName=name,
        BatchStrategy=strategy,
        TransformInput={"DataSource": source, "ContentType": content_type, "SplitType": "Line"},
        TransformOutput={"S3OutputPath": f"file://{folder}/out", "AssembleWith": "Line"},
        TransformResources={"InstanceType": "ml.g4dn.xlarge", "InstanceCount": 1},
    )

    def describe() -> dict:
        return local.sagemaker.describe_transform_job(TransformJobName=name)

    wait_for(lambda: describe()["TransformJobStatus"] != "InProgress", 30)
    return describe()
