"""TGI's SageMaker example, with the unmodified SageMaker SDK 2.x."""

import json
from collections.abc import Iterator

import pytest
from sagemaker.huggingface import HuggingFaceModel
from sagemaker.iterators import ByteIterator, LineIterator
from sagemaker.session import Session

from tests.support.aws.local_sagemaker import DEMO_MODEL, IMAGE, ROLE, Local

CHAT = {"messages": [{"role": "user", "content": "What is deep learning?"}], "max_tokens": 8}


@pytest.fixture(scope="module")
def predictor(local: Local) -> Iterator:
    model = HuggingFaceModel(
        image_uri=IMAGE,
        env={
            "HF_MODEL_ID": str(DEMO_MODEL),
            "SM_NUM_GPUS": json.dumps(0),
            "MESSAGES_API_ENABLED": "true",
        },
        role=ROLE,
        sagemaker_session=Session(default_bucket="models"),
    )
    # wait=True polls only every 30 seconds.
    predictor = model.deploy(
        initial_instance_count=1,
        instance_type="ml.g5.2xlarge",
        container_startup_health_check_timeout=300,
        wait=False,
    )
    assert local.settle(predictor.endpoint_name)["EndpointStatus"] == "InService"
    yield predictor
    predictor.delete_model()
    predictor.delete_endpoint()


def test_predict_answers_messages(predictor) -> None:
    answer = predictor.predict(CHAT)
    assert answer["choices"][0]["message"]["content"]


def test_predict_stream_gives_bytes_as_they_come(predictor) -> None:
    parts = list(predictor.predict_stream(CHAT | {"stream": True}, iterator=ByteIterator))
    assert len(parts) > 1
    assert b"".join(parts).rstrip().endswith(b"data: [DONE]")


def test_predict_stream_gives_lines(predictor) -> None:
    lines = list(predictor.predict_stream(CHAT | {"stream": True}, iterator=LineIterator))
    events = [json.loads(line[5:]) for line in lines if line and b"[DONE]" not in line]
    assert "".join(event["choices"][0]["delta"]["content"] for event in events)


def test_a_wrong_body_is_a_model_error(predictor, local: Local) -> None:
    with pytest.raises(local.runtime.exceptions.ClientError, match="`messages` is missing"):
        predictor.predict({"inputs": "Hello"})


def test_the_sdks_empty_variables_do_no_harm(predictor, local: Local) -> None:
    endpoint = local.sagemaker.describe_endpoint(EndpointName=predictor.endpoint_name)
    name = endpoint["EndpointConfigName"]
    config = local.sagemaker.describe_endpoint_config(EndpointConfigName=name)
    name = config["ProductionVariants"][0]["ModelName"]
    model = local.sagemaker.describe_model(ModelName=name)
    assert model["PrimaryContainer"]["Environment"]["SAGEMAKER_PROGRAM"] == ""
