"""The size of a model, read before it is deployed."""

from typing import Any

from sagemaker_deploy import config as configuration
from sagemaker_deploy.aws import Aws
from sagemaker_deploy.facts.model_size import model_size
from sagemaker_deploy.plan.sizing import UNKNOWN, ModelSize
from tests.deploy.plan.cases import BASE
from tests.support.aws.local_sagemaker import DEMO_MODEL
from tests.support.services.hub import hub

WEIGHTS = (DEMO_MODEL / "model.safetensors").stat().st_size


def _size(model: dict[str, Any], url: str = "http://127.0.0.1:9") -> ModelSize:
    config = configuration.parse(BASE | {"model": model, "bucket": "models"})
    return model_size(Aws("us-east-1"), config, url)


def test_a_folders_weights_and_cache_are_counted() -> None:
    size = _size({"data": str(DEMO_MODEL)})
    assert size.weights_bytes == WEIGHTS
    assert size.kv_bytes_per_token > 0


def test_the_hub_is_asked_for_a_model_that_is_there() -> None:
    with hub(DEMO_MODEL, "org/model") as server:
        size = _size({"id": "org/model"}, f"http://127.0.0.1:{server.server_port}")
    assert size.weights_bytes == WEIGHTS
    assert size.source == "safetensors on the Hub"


def test_a_hub_that_cannot_be_reached_leaves_the_size_unknown() -> None:
    assert _size({"id": "org/model"}) is UNKNOWN
