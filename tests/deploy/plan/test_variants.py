"""Variants beside the deployment's own: a share of the traffic, or a shadow."""

from typing import Any

import pytest

from sagemaker_deploy import config as configuration
from sagemaker_deploy.errors import ConfigError
from sagemaker_deploy.plan.deploy import AccountState, plan
from sagemaker_deploy.plan.steps import Step
from tests.deploy.plan.cases import BASE, CASES

STATE = AccountState("us-east-1", "000000000000")


def _calls(changes: dict[str, Any]) -> dict[str, list[Any]]:
    calls: dict[str, list[Any]] = {}
    for step in plan(configuration.parse(BASE | changes), STATE).steps:
        if isinstance(step, Step):
            calls.setdefault(step.operation, []).append(step.params)
    return calls


def test_a_variant_has_its_own_model_and_its_share() -> None:
    calls = _calls(CASES["beside"])
    own, new = calls["create_model"]
    assert new["PrimaryContainer"]["Environment"]["HF_MODEL_ID"] == "org/new"
    assert new["PrimaryContainer"]["Image"] == own["PrimaryContainer"]["Image"]
    [config] = calls["create_endpoint_config"]
    variants = {each["VariantName"]: each for each in config["ProductionVariants"]}
    assert variants["AllTraffic"]["ModelName"] == own["ModelName"]
    assert variants["candidate"]["ModelName"] == new["ModelName"]
    weights = [each["InitialVariantWeight"] for each in variants.values()]
    assert weights == [9, 1]


def test_a_shadow_gets_its_share_and_inherits_the_rest() -> None:
    calls = _calls(CASES["shadowed"])
    [config] = calls["create_endpoint_config"]
    [shadow] = config["ShadowProductionVariants"]
    assert shadow["InitialVariantWeight"] == 0.25
    assert shadow["InstanceType"] == "ml.g5.2xlarge"
    assert len(config["ProductionVariants"]) == 1
    assert calls["create_model"][1]["PrimaryContainer"]["Environment"]["QUANTIZE"] == "int8"


def test_a_variant_with_the_same_model_makes_no_second_one() -> None:
    calls = _calls({"variants": {"small": {"instance_type": "ml.g5.xlarge"}}})
    assert len(calls["create_model"]) == 1
    types = [
        each["InstanceType"] for each in calls["create_endpoint_config"][0]["ProductionVariants"]
    ]
    assert types == ["ml.g5.2xlarge", "ml.g5.xlarge"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (CASES["beside"] | CASES["shadowed"], "shadow and variants"),
        (CASES["component"] | CASES["shadowed"], "component: cannot be combined with shadow"),
        (CASES["asynchronous"] | CASES["beside"], "asynchronous: cannot be combined with variants"),
        ({"variants": {"a": {"model": {"data": "folder"}}}}, "variants.a.model.data: folder is on"),
        ({"variants": {"a": {"weight": -1}}}, "variants.a.weight"),
        ({"variants": {"a": {"instance_type": "ml.g5.xlrge"}}}, "a.instance_type: ml.g5.xlrge"),
        (
            {"model": {"data": "folder"}, "bucket": "b", "shadow": {}},
            "shadow.model: needed, as model.data is on this machine",
        ),
    ],
)
def test_what_cannot_be_combined_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _calls(changes)
    assert words in "\n".join(caught.value.problems)
