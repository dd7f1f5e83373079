import pytest

from sagemaker_deploy import service_model
from sagemaker_deploy.service_model import CONTROL, RUNTIME, ShapeError

MODEL = {
    "ModelName": "m",
    "PrimaryContainer": {"Image": "i", "Environment": {"HF_MODEL_ID": "demo"}},
}


def test_a_good_input_passes() -> None:
    service_model.check_input(CONTROL, "CreateModel", MODEL)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"ModelName": "under_score"}, "regular expression"),
        ({"ModelName": "m" * 64}, "length less than or equal to 63"),
        ({"PrimaryContainer": {"Mode": "Both"}}, "enum value set"),
        ({"PrimaryContainer": {"Environment": {"A": "v" * 1025}}}, "PrimaryContainer.Environment"),
        ({"PrimaryContainer": {"Image": 5}}, "Image"),
        ({"Modelname": "m"}, "Modelname"),
    ],
)
def test_requests_against_the_service_model_are_refused(change, complaint: str) -> None:
    with pytest.raises(ShapeError, match=complaint):
        service_model.check_input(CONTROL, "CreateModel", MODEL | change)


def test_an_unknown_instance_type_is_refused() -> None:
    variant = {"VariantName": "v", "ModelName": "m", "InitialInstanceCount": 1}
    params = {
        "EndpointConfigName": "c",
        "ProductionVariants": [variant | {"InstanceType": "ml.g99.huge"}],
    }
    with pytest.raises(ShapeError, match=r"ml\.g99\.huge"):
        service_model.check_input(CONTROL, "CreateEndpointConfig", params)


def test_header_fields_are_read_by_their_names_and_checked() -> None:
    headers = {"Content-Type": "application/json", "X-Amzn-SageMaker-Inference-Id": "one"}
    fields = service_model.read_headers(RUNTIME, "InvokeEndpoint", headers.get)
    assert fields == {"ContentType": "application/json", "InferenceId": "one"}


def test_a_session_id_with_bad_characters_is_refused() -> None:
    headers = {"X-Amzn-SageMaker-Session-Id": "NEW SESSION"}
    with pytest.raises(ShapeError, match="SessionId"):
        service_model.read_headers(RUNTIME, "InvokeEndpoint", headers.get)


def test_every_pattern_of_the_local_operations_compiles() -> None:
    used = [
        (CONTROL, "CreateModel"),
        (CONTROL, "CreateEndpointConfig"),
        (CONTROL, "CreateEndpoint"),
    ]
    used += [(RUNTIME, "InvokeEndpoint"), (RUNTIME, "InvokeEndpointAsync")]
    for service, name in used:
        for field, shape in service_model.operation(service, name).input_shape.members.items():
            pattern = shape.metadata.get("pattern")
            assert not pattern or service_model._pattern(pattern), field
