"""Templates say what plans say, and cfn-lint finds nothing to complain about."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from cfnlint.api import lint_file

from sagemaker_deploy import config as configuration
from sagemaker_deploy.errors import ConfigError
from sagemaker_deploy.templates import cloudformation, pipeline
from tests.deploy.plan.cases import BASE, CASES

ROOT = Path(__file__).parents[3]


def _config(changes: dict[str, Any]) -> configuration.Config:
    merged = {key: value for key, value in (BASE | changes).items() if value is not None}
    return configuration.parse(merged)


def _complaints(document: dict[str, Any], tmp_path: Path) -> list[str]:
    path = tmp_path / "template.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return [f"{match.rule.id} {match.message}" for match in lint_file(path)]


@pytest.mark.parametrize("case", [case for case in CASES if case != "draft model"])
def test_every_deployments_template_is_clean(case: str, tmp_path: Path) -> None:
    assert _complaints(cloudformation.endpoint(_config(CASES[case])), tmp_path) == []


def test_endpoints_wait_for_alarms_and_components_reserve_gpus() -> None:
    resources = cloudformation.endpoint(_config(CASES["watched"]))["Resources"]
    assert resources["Endpoint"]["DependsOn"] == ["ErrorsAlarm", "LatencyAlarm"]
    resources = cloudformation.endpoint(_config(CASES["component"]))["Resources"]
    specification = resources["Component"]["Properties"]["Specification"]
    compute = specification["ComputeResourceRequirements"]
    assert compute["NumberOfAcceleratorDevicesRequired"] == 1


def test_steps_without_a_cloudformation_resource_are_refused() -> None:
    with pytest.raises(ConfigError, match=re.escape("model.additional")):
        cloudformation.endpoint(_config(CASES["draft model"]))


def test_the_pipelines_template_is_clean(tmp_path: Path) -> None:
    assert _complaints(pipeline.template(), tmp_path) == []


def test_each_platform_has_a_project_of_its_own_processor() -> None:
    resources = pipeline.template()["Resources"]
    kinds = {}
    for name in ("Build", "BuildArm64"):
        environment = resources[name]["Properties"]["Environment"]
        variables = {
            each["Name"]: each["Value"]
            for each in environment["EnvironmentVariables"]
            if "Name" in each
        }
        kinds[variables["PLATFORM"]] = environment["Type"]
    assert kinds == {"linux/amd64": "LINUX_CONTAINER", "linux/arm64": "ARM_CONTAINER"}
    assert resources["BuildArm64"]["Condition"] == "IsForGraviton"
    assert "HasBaseImageArm64" in str(resources["BuildArm64"])
    assert "'HasBaseImage'" not in str(resources["BuildArm64"])


def test_a_secret_is_a_dynamic_reference() -> None:
    document = cloudformation.endpoint(_config(CASES["secret"]))
    container = document["Resources"]["Model"]["Properties"]["PrimaryContainer"]
    assert container["Environment"]["HF_TOKEN"] == "{{resolve:secretsmanager:hub}}"


def test_a_folder_on_this_machine_is_refused() -> None:
    config = _config({"model": {"data": "folder"}, "bucket": "models"})
    with pytest.raises(ConfigError, match=re.escape("model.data")):
        cloudformation.endpoint(config)


def test_the_template_has_the_parameters_of_its_page() -> None:
    page = (ROOT / "docs" / "pipeline.md").read_text()
    template = str(pipeline.template())
    rights = set(re.findall(r"`((?:ecr|inspector-scan):\w+)`", page))
    variables = set(re.findall(r"`([A-Z]+_[A-Z]+|VARIANT)`", page))
    assert {"ecr:PutImage", "inspector-scan:ScanSbom"} <= rights
    assert {"REPOSITORY_URI", "VARIANT"} <= variables
    variables -= {"PACKAGE_INDEX"}  # of `make audit`, which CodeBuild does not run
    assert [name for name in rights | variables if f"'{name}'" not in template] == []
