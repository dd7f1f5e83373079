"""What `plan` refuses because the service, or the container's start, would."""

from typing import Any

import pytest

from sagemaker_deploy import config as configuration
from sagemaker_deploy.errors import ConfigError
from sagemaker_deploy.plan import instances
from sagemaker_deploy.plan.checks import EcrImage
from sagemaker_deploy.plan.deploy import AccountState, plan
from sagemaker_deploy.plan.sizing import ModelSize
from sagemaker_deploy.templates import cloudformation
from tests.deploy.plan.cases import BASE, CASES

GB = 10**9
HUB, S3 = {"id": "org/model"}, {"data": "s3://models/chat/"}
ARCHIVE = {"data": "s3://models/chat/model.tar.gz"}
SERVERLESS: dict[str, Any] = {"instance_type": None, "cuda": None, "serverless": {}}
CPU: dict[str, Any] = {"instance_type": "ml.c7i.2xlarge", "cuda": None}
VPC = CASES["vpc"]


def _problems(changes: dict[str, Any], **state: Any) -> str:
    values = {key: value for key, value in (BASE | changes).items() if value is not None}
    account_state = AccountState("us-east-1", "0" * 12, **state)
    with pytest.raises(ConfigError) as caught:
        plan(configuration.parse(values), account_state)
    return "\n".join(caught.value.problems)


def _warnings(changes: dict[str, Any], **state: Any) -> str:
    values = {key: value for key, value in (BASE | changes).items() if value is not None}
    account_state = AccountState("us-east-1", "0" * 12, **state)
    return "\n".join(plan(configuration.parse(values), account_state).warnings)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ml.g5.2xlrge", "did you mean ml.g5.2xlarge"),
        ("ml.g5.3xlarge", "The sizes of this family are: ml.g5.xlarge, ml.g5.2xlarge"),
        ("g5.xlarge", "did you mean ml.g5.xlarge"),
        ("ML.G5.XLARGE", "did you mean ml.g5.xlarge"),
        ("ml.gg5.xlarge", "did you mean ml.g5.xlarge"),
        ("ml.c7gi.large", "did you mean ml.c7i.large or ml.c7g.large"),
        ("x", "x is no instance type of SageMaker endpoints"),
    ],
)
def test_a_misspelt_instance_type_is_named_with_the_nearest(name: str, words: str) -> None:
    assert f"instance_type: {name}" in (text := _problems({"instance_type": name}))
    assert words in text
    assert f"instance_types: {name}" in _problems(
        {"instance_type": None, "instance_types": ["ml.g6.xlarge", name]}
    )


def test_a_family_newer_than_botocores_list_is_not_refused() -> None:
    assert instances.refusal("ml.g9.xlarge") is None
    assert instances.refusal("ml.c12g.large") is None
    assert instances.refusal("ml.g5x.xlarge")
    assert "its memory is not known" in _warnings({"instance_type": "ml.g9.xlarge"})


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("ml.c7g.xlarge", "arm64"), ("ml.m6gd.large", "arm64"), ("ml.c6gn.large", "arm64"),
        ("ml.r8g.medium", "arm64"), ("ml.p6e-gb200.36xlarge", "arm64"),
        ("ml.g5.xlarge", "amd64"), ("ml.g4dn.xlarge", "amd64"), ("ml.c6i.large", "amd64"),
        ("ml.p6-b200.48xlarge", "amd64"), ("ml.m5d.large", "amd64"),
    ],
)  # fmt: skip
def test_the_architecture_of_an_instance_type_is_known(name: str, architecture: str) -> None:
    assert name in instances.known_types()
    assert instances.architecture(name) == architecture


@pytest.mark.parametrize("name", ["ml.c8g.4xlarge", "ml.r7gd.xlarge", "ml.p6-b200.48xlarge"])
def test_the_memory_of_newer_types_is_known(name: str) -> None:
    instance = instances.find(name)
    assert instance
    assert instance.model_memory_bytes > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (SERVERLESS | VPC, "network: a serverless endpoint has none"),
        (SERVERLESS | {"capture": {"destination": "s3://seen/x"}}, "capture: a serverless"),
        (SERVERLESS | {"volume_gb": 8}, "volume_gb: a serverless"),
        (
            SERVERLESS | {"serverless": {"max_concurrency": 2, "provisioned_concurrency": 3}},
            "provisioned_concurrency: 3 is more than serverless.max_concurrency, 2",
        ),
        (CASES["multi-model"] | {"component": {}}, "multi_model and component: choose one"),
        ({"multi_model": True}, "multi_model: needs model.data, the s3:// prefix"),
        ({"multi_model": True, "model": ARCHIVE}, "is one archive; multi_model needs their prefix"),
        ({"env": {"PORT": "9000"}}, "env.PORT: 9000; SageMaker calls port 8080"),
        ({"env": {"SAGEMAKER_BIND_TO_PORT": "1"}}, "env.SAGEMAKER_BIND_TO_PORT"),
        ({"env": {"HOST": "127.0.0.1"}}, "env.HOST: 127.0.0.1"),
        ({"env": {"A": "x" * 1025}}, "length less than or equal to 1024"),
        ({"env": {f"A{n}": "x" for n in range(101)}}, "entry count less than or equal to 100"),
        ({"volume_gb": 100}, "volume_gb: ml.g5.2xlarge has a disk of its own"),
        ({"instance_type": "ml.inf2.xlarge"}, "Neuron or Gaudi"),
        (
            {"instance_type": None, "instance_types": ["ml.c7i.xlarge", "ml.c7g.xlarge"]},
            "are of two architectures",
        ),
        ({"network": {"subnets": ["sub net"], "security_groups": ["sg-1"]}}, "pattern"),
    ],
)
def test_the_plan_refuses_values_that_the_service_refuses(
    changes: dict[str, Any], words: str
) -> None:
    assert words in _problems(changes)


@pytest.mark.parametrize("case", CASES)
def test_the_plan_accepts_values_that_the_service_accepts(case: str) -> None:
    values = {key: value for key, value in (BASE | CASES[case]).items() if value is not None}
    plan(configuration.parse(values), AccountState("us-east-1", "0" * 12))


def test_the_template_has_the_same_checks() -> None:
    config = configuration.parse(BASE | {"env": {"PORT": "9000"}})
    with pytest.raises(ConfigError, match=r"env\.PORT"):
        cloudformation.endpoint(config)


@pytest.mark.parametrize(
    ("changes", "gigabytes", "words"),
    [
        ({}, 140, "holds 24 GiB, and the weights have 130.4 GiB (the Hub); take a larger one"),
        (CPU, 40, "holds 16 GiB"),
        (SERVERLESS, 8, "serverless.memory_mb: 6144 MB hold no weights of 7.5 GiB"),
        (SERVERLESS | {"model": ARCHIVE}, 4, "its disk has 5 GB, and the model takes 8.0 GB"),
        (CPU | {"component": {"memory_mb": 1024}}, 8, "component.memory_mb: 1024 MB hold no"),
        (CPU | {"model": ARCHIVE, "volume_gb": 20}, 12, "volume_gb: 20 GB hold no model of 24.0"),
        ({"instance_type": "ml.p5.48xlarge", "health_check_timeout_s": 60}, 140, "start takes 168"),
        (
            {"instance_type": "ml.p5.48xlarge", "model": S3, "download_timeout_s": 60},
            300, "download_timeout_s: 60 s; the files take 100 s",
        ),
    ],
)  # fmt: skip
def test_a_model_that_cannot_fit_or_start_in_time_is_refused(
    changes: dict[str, Any], gigabytes: int, words: str
) -> None:
    size = ModelSize(gigabytes * GB, source="the Hub")
    assert words in _problems({"health_check_timeout_s": 3600} | changes, size=size)


def test_a_quantized_model_may_be_larger_on_disk_than_in_memory() -> None:
    size = ModelSize(40 * GB, source="the Hub")
    assert "too small" in _warnings({"env": {"QUANTIZE": "int8"}}, size=size)


def test_a_large_model_on_a_small_disk_is_a_warning() -> None:
    changes = CPU | {"instance_type": "ml.m7i.48xlarge", "model": S3}
    assert "volume_gb: not set" in _warnings(changes, size=ModelSize(60 * GB, source="S3"))


@pytest.mark.parametrize(
    ("changes", "image", "words"),
    [
        (
            {}, {"media_type": "application/vnd.oci.image.index.v1+json"},
            "which SageMaker refuses; build it with `docker buildx build",
        ),
        (
            {"instance_type": "ml.c7g.xlarge"}, {"architectures": frozenset({"amd64"})},
            "built for amd64; ml.c7g.xlarge runs arm64; build it with --platform linux/arm64",
        ),
        ({}, {"architectures": frozenset({"arm64"})}, "ml.g5.2xlarge runs amd64"),
        (SERVERLESS, {"architectures": frozenset({"arm64"})}, "serverless runs amd64"),
        (SERVERLESS, {"size_bytes": 11 * 2**30}, "a serverless endpoint takes 10737418240"),
    ],
)  # fmt: skip
def test_an_image_that_cannot_run_is_refused(
    changes: dict[str, Any], image: dict[str, Any], words: str
) -> None:
    assert words in _problems(changes, image=EcrImage(exists=True, **image))


def test_captured_json_is_not_in_base64() -> None:
    values = BASE | {"capture": {"destination": "s3://seen/x"}}
    planned = plan(configuration.parse(values), AccountState("us-east-1", "0" * 12))
    [capture] = [
        step.params["DataCaptureConfig"]
        for step in planned.steps
        if "DataCaptureConfig" in getattr(step, "params", {})
    ]
    types = capture["CaptureContentTypeHeader"]
    assert "application/json" in types["JsonContentTypes"]
    assert types["CsvContentTypes"] == ["text/csv"]
