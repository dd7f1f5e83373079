"""boto3, unmodified, against the local endpoint and the real server."""

import json

import boto3
import pytest
from openai import OpenAI

CHAT = {"messages": [{"role": "user", "content": "What is deep learning?"}], "max_tokens": 8}
GENERATE = {"inputs": "Hello", "parameters": {"max_new_tokens": 5}}


def _invoke(endpoint: str, body: dict):
    return boto3.client("sagemaker-runtime").invoke_endpoint(
        EndpointName=endpoint, ContentType="application/json", Body=json.dumps(body)
    )


def test_a_chat_is_answered(demo: str) -> None:
    answer = json.loads(_invoke(demo, CHAT)["Body"].read())
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] <= 8


def test_a_stream_comes_in_several_parts_and_ends_with_a_newline(demo: str) -> None:
    answer = boto3.client("sagemaker-runtime").invoke_endpoint_with_response_stream(
        EndpointName=demo,
        ContentType="application/json",
        Body=json.dumps(GENERATE | {"stream": True}),
    )
    assert answer["ContentType"].startswith("text/event-stream")
    parts = [event["PayloadPart"]["Bytes"] for event in answer["Body"]]
    assert len(parts) > 1
    events = [json.loads(line[5:]) for line in b"".join(parts).splitlines() if line]
    assert len(events) == 5
    assert b"".join(parts).endswith(b"\n")


def test_a_clients_mistake_is_a_model_error_that_names_the_field(demo: str) -> None:
    client = boto3.client("sagemaker-runtime")
    with pytest.raises(client.exceptions.ModelError) as caught:
        client.invoke_endpoint(
            EndpointName=demo,
            ContentType="application/json",
            Body=json.dumps({"inputs": "Hello", "parameters": {"temperature": -1}}),
        )
    assert caught.value.response["OriginalStatusCode"] == 422
    assert "temperature" in caught.value.response["OriginalMessage"]


def test_openais_client_reaches_the_front_door(demo: str, local) -> None:
    client = OpenAI(base_url=f"{local.url}/endpoints/{demo}/openai/v1", api_key="-")
    stream = client.chat.completions.create(model="", stream=True, **CHAT)
    with client:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)
