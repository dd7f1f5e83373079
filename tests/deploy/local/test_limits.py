"""The local endpoint refuses and wraps the same answers as the service."""

import json
import urllib.request
from urllib.error import HTTPError

import pytest
from botocore.exceptions import ClientError, EventStreamError

from sagemaker_deploy.local.invocations.calls import Limits
from tests.support.aws.local_sagemaker import Local


def _refused(call, *arguments, **fields) -> dict:
    with pytest.raises(ClientError) as caught:
        call(*arguments, **fields)
    return caught.value.response


def _stream(local: Local, wish: dict):
    return local.runtime.invoke_endpoint_with_response_stream(
        EndpointName="fake", ContentType="application/json", Body=json.dumps(wish)
    )


def test_a_container_error_becomes_a_model_error(fake_local: Local) -> None:
    wish = {"status": 422, "answer": '{"error":"too long"}'}
    response = _refused(fake_local.invoke, "fake", wish)
    assert response["Error"]["Code"] == "ModelError"
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert response["OriginalStatusCode"] == 422
    assert response["OriginalMessage"] == '{"error":"too long"}'
    assert "Received client error (422) from primary" in response["Error"]["Message"]
    assert response["LogStreamArn"].endswith("/aws/sagemaker/Endpoints/fake")


def test_an_answer_after_the_limit_is_a_timeout(fake_local: Local) -> None:
    response = _refused(fake_local.invoke, "fake", {"sleep_s": 1.5})
    assert response["OriginalStatusCode"] == 0
    assert "Your invocation timed out" in response["OriginalMessage"]


def test_an_answer_that_drips_beyond_the_limit_is_a_timeout_too(fake_local: Local) -> None:
    response = _refused(fake_local.invoke, "fake", {"pieces": ["x"] * 10, "gap_s": 0.3})
    assert "Your invocation timed out" in response["OriginalMessage"]


def test_the_real_limits_are_the_services() -> None:
    limits = Limits()
    assert (limits.invoke_s, limits.stream_s) == (60, 480)
    assert (limits.body_bytes, limits.serverless_body_bytes) == (26_214_400, 4_194_304)


def test_25_megabytes_pass_and_one_byte_more_is_a_413(fake_local: Local) -> None:
    body = b"x" * 26_214_400
    send = fake_local.runtime.invoke_endpoint
    assert send(EndpointName="fake", Body=body)["ResponseMetadata"]["HTTPStatusCode"] == 200
    response = _refused(send, EndpointName="fake", Body=body + b"x")
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 413


def test_a_serverless_endpoint_takes_4_megabytes(fake_local: Local) -> None:
    settings = {"MemorySizeInMB": 2048, "MaxConcurrency": 1}
    fake_local.deploy("small", ServerlessConfig=settings)
    body = b"x" * (4 * 1024 * 1024 + 1)
    response = _refused(fake_local.runtime.invoke_endpoint, EndpointName="small", Body=body)
    assert response["Error"]["Code"] == "ValidationError"
    assert "oversize body" in response["Error"]["Message"]


def test_an_unknown_endpoint_is_a_validation_error(fake_local: Local) -> None:
    response = _refused(fake_local.invoke, "nobody")
    assert response["Error"]["Code"] == "ValidationError"
    assert "nobody" in response["Error"]["Message"]


def test_an_unknown_variant_is_a_validation_error(fake_local: Local) -> None:
    response = _refused(fake_local.invoke, "fake", TargetVariant="green")
    assert "green" in response["Error"]["Message"]


def test_a_request_without_a_signature_is_refused(fake_local: Local) -> None:
    request = urllib.request.Request(f"{fake_local.url}/endpoints/fake/invocations", b"{}")
    with pytest.raises(HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == 403
    caught.value.close()


def test_the_container_gets_the_headers_that_sagemaker_passes_on(fake_local: Local) -> None:
    received = fake_local.invoke(
        "fake", CustomAttributes="a=b", InferenceId="id-1", SessionId="s-1", Accept="text/plain"
    )
    assert received["x-amzn-sagemaker-custom-attributes"] == "a=b"
    assert received["x-amzn-sagemaker-inference-id"] == "id-1"
    assert received["x-amzn-sagemaker-session-id"] == "s-1"
    assert received["accept"] == "text/plain"
    assert "authorization" not in received
    assert received["path"] == "/invocations"


def test_headers_of_the_container_are_returned(fake_local: Local) -> None:
    headers = {
        "X-Amzn-SageMaker-Custom-Attributes": "c=d",
        "X-Amzn-SageMaker-Session-Id": "s1; Expires=2030-01-01T00:00:00Z",
        "X-Amzn-SageMaker-Closed-Session-Id": "s0",
        "X-Other": "lost",
    }
    answer = fake_local.runtime.invoke_endpoint(
        EndpointName="fake", Body=json.dumps({"headers": headers}), SessionId="NEW_SESSION"
    )
    assert answer["CustomAttributes"] == "c=d"
    assert answer["NewSessionId"] == "s1; Expires=2030-01-01T00:00:00Z"
    assert answer["ClosedSessionId"] == "s0"
    assert answer["InvokedProductionVariant"] == "AllTraffic"
    assert "x-other" not in answer["ResponseMetadata"]["HTTPHeaders"]
    answer = fake_local.runtime.invoke_endpoint(
        EndpointName="fake", Body=json.dumps({"headers": headers})
    )
    assert "NewSessionId" not in answer  # it was not asked for


def test_stream_parts_arrive_as_the_container_writes_them(fake_local: Local) -> None:
    answer = _stream(fake_local, {"pieces": ["a\n", "b\n", "c\n"], "gap_s": 0.15})
    assert answer["ContentType"] == "text/event-stream"
    parts = [event["PayloadPart"]["Bytes"] for event in answer["Body"]]
    assert parts == [b"a\n", b"b\n", b"c\n"]


def test_a_stream_beyond_the_limit_ends_with_an_error_event(fake_local: Local) -> None:
    answer = _stream(fake_local, {"pieces": ["x"] * 10, "gap_s": 0.5})
    with pytest.raises(EventStreamError, match="time limit"):
        list(answer["Body"])


def test_a_stream_that_breaks_off_ends_with_an_error_event(fake_local: Local) -> None:
    answer = _stream(fake_local, {"pieces": ["x"], "break": True})
    with pytest.raises(EventStreamError, match="broke the stream off"):
        list(answer["Body"])


def test_an_early_stream_error_is_a_model_error(fake_local: Local) -> None:
    with pytest.raises(ClientError) as caught:
        _stream(fake_local, {"status": 503, "answer": "loading"})
    assert caught.value.response["OriginalStatusCode"] == 503
