"""The unmodified SageMaker SDK 2.x in its other modes: own code, S3, serverless, async, batch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from sagemaker.async_inference import AsyncInferenceConfig, WaiterConfig
from sagemaker.deserializers import JSONDeserializer
from sagemaker.huggingface import HuggingFaceModel
from sagemaker.multidatamodel import MultiDataModel
from sagemaker.predictor import Predictor
from sagemaker.serializers import JSONSerializer
from sagemaker.serverless import ServerlessInferenceConfig
from sagemaker.session import Session
from sagemaker.transformer import Transformer

from sagemaker_deploy.execute import pack
from tests.support.aws.local_sagemaker import DEMO_MODEL, IMAGE, ROLE, Local

GENERATE = {"inputs": "Hello", "parameters": {"max_new_tokens": 4}}
BUCKET = "sdk"
CODE = """
def predict_fn(data, model):
    return {"shouted": data["text"].upper()}

def model_fn(model_dir):
    import os
    return sorted(os.listdir(model_dir))
"""


@pytest.fixture(scope="module")
def session(local: Local) -> Session:
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    return Session(default_bucket=BUCKET)


@pytest.fixture(scope="module")
def archive_url(session: Session, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("archive") / "model.tar.gz"
    pack(DEMO_MODEL, None, path)
    boto3.client("s3").upload_file(str(path), BUCKET, "demo/model.tar.gz")
    return f"s3://{BUCKET}/demo/model.tar.gz"


@pytest.fixture
def deployed(local: Local) -> Iterator[Any]:
    predictors: list[Predictor] = []

    def deploy(model: Any, **settings: Any) -> Any:
        if "serverless_inference_config" not in settings:
            settings |= {"initial_instance_count": 1, "instance_type": "ml.g5.xlarge"}
        predictor = model.deploy(wait=False, **settings)
        predictors.append(predictor)
        record = local.settle(predictor.endpoint_name)
        assert record["EndpointStatus"] == "InService", record
        return predictor

    yield deploy
    for predictor in predictors:
        local.sagemaker.delete_endpoint(EndpointName=predictor.endpoint_name)


def _model(session: Session, **settings: Any) -> HuggingFaceModel:
    return HuggingFaceModel(image_uri=IMAGE, role=ROLE, sagemaker_session=session, **settings)


def test_own_code_is_repacked_into_the_archive_and_runs(
    session: Session, archive_url: str, deployed: Any, tmp_path: Path
) -> None:
    (tmp_path / "inference.py").write_text(CODE)
    model = _model(
        session, model_data=archive_url, entry_point="inference.py", source_dir=str(tmp_path)
    )
    predictor = deployed(model)
    assert predictor.predict({"text": "hello"}) == {"shouted": "HELLO"}


def test_an_uncompressed_prefix_is_served(session: Session, deployed: Any) -> None:
    for path in DEMO_MODEL.iterdir():
        boto3.client("s3").upload_file(str(path), BUCKET, f"plain/{path.name}")
    source = {"S3DataSource": {"S3Uri": f"s3://{BUCKET}/plain/", "S3DataType": "S3Prefix",
                               "CompressionType": "None"}}  # fmt: skip
    predictor = deployed(_model(session, model_data=source))
    assert predictor.predict(GENERATE)[0]["generated_text"]


def test_a_serverless_endpoint_serves_an_archive_on_s3(
    session: Session, archive_url: str, deployed: Any
) -> None:
    config = ServerlessInferenceConfig(memory_size_in_mb=2048, max_concurrency=1)
    model = _model(session, model_data=archive_url)
    predictor = deployed(model, serverless_inference_config=config)
    assert predictor.predict(GENERATE)[0]["generated_text"]


def test_an_async_prediction_comes_back_through_s3(
    session: Session, archive_url: str, deployed: Any
) -> None:
    config = AsyncInferenceConfig(output_path=f"s3://{BUCKET}/out")
    model = _model(session, model_data=archive_url)
    predictor = deployed(model, async_inference_config=config)
    answer = predictor.predict(GENERATE, waiter_config=WaiterConfig(max_attempts=20, delay=1))
    assert answer[0]["generated_text"]


def test_custom_attributes_and_inference_id_travel(local: Local, demo: str) -> None:
    predictor = Predictor(
        demo,
        Session(default_bucket=BUCKET),
        serializer=JSONSerializer(),
        deserializer=JSONDeserializer(),
    )
    answer = predictor.predict(GENERATE, inference_id="id-1", custom_attributes="trace=1")
    assert answer[0]["generated_text"]


def test_a_batch_transform_answers_line_by_line(
    session: Session, archive_url: str, local: Local
) -> None:
    lines = [json.dumps({**GENERATE, "inputs": word}) for word in ("Hello", "One", "Two")]
    body = "\n".join([*lines[:2], "{broken", lines[2]]) + "\n"
    boto3.client("s3").put_object(Bucket=BUCKET, Key="batch/in/a.jsonl", Body=body.encode())
    model = _model(session, model_data=archive_url)
    model._create_sagemaker_model(instance_type="ml.g5.xlarge")
    transformer = Transformer(
        model.name, 1, "ml.g5.xlarge", strategy="MultiRecord", assemble_with="Line",
        output_path=f"s3://{BUCKET}/batch/out", accept="application/jsonlines",
        sagemaker_session=session,
    )  # fmt: skip
    transformer.transform(
        f"s3://{BUCKET}/batch/in", content_type="application/jsonlines", split_type="Line",
        wait=True, logs=False,
    )  # fmt: skip
    answer = boto3.client("s3").get_object(Bucket=BUCKET, Key="batch/out/a.jsonl.out")
    rows = [json.loads(line) for line in answer["Body"].read().splitlines()]
    assert len(rows) == 4
    assert "error" in rows[2]
    assert "error" not in rows[3]


def test_a_multi_data_model_names_its_target(
    session: Session, archive_url: str, local: Local
) -> None:
    s3 = boto3.client("s3")
    for name in ("one", "two"):
        source = {"Bucket": BUCKET, "Key": "demo/model.tar.gz"}
        s3.copy_object(Bucket=BUCKET, Key=f"many/{name}.tar.gz", CopySource=source)
    model = MultiDataModel(
        "many", f"s3://{BUCKET}/many/", image_uri=IMAGE, role=ROLE, sagemaker_session=session
    )
    model.deploy(1, "ml.g5.xlarge", endpoint_name="many", wait=False)
    assert local.settle("many")["EndpointStatus"] == "InService"
    predictor = Predictor(
        "many", session, serializer=JSONSerializer(), deserializer=JSONDeserializer()
    )
    for name in ("one", "two"):
        answer = predictor.predict(GENERATE, target_model=f"{name}.tar.gz")
        assert answer[0]["generated_text"]
    local.sagemaker.delete_endpoint(EndpointName="many")
