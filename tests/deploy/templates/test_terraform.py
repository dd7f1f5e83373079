"""Terraform documents have only attributes that the provider has, and all that it requires."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sagemaker_deploy import config as configuration
from sagemaker_deploy.errors import ConfigError
from sagemaker_deploy.templates import terraform
from tests.deploy.plan.cases import BASE, CASES

# Made by read_provider.py from the provider's published bindings.
PROVIDER = json.loads(Path(__file__).with_name("provider.json").read_text())
META = {"depends_on", "lifecycle"}
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str, int, float), "number": (int, float), "boolean": (bool,),
    "string[]": (list,), "map": (dict,),
}  # fmt: skip
LACKING = {
    "component": "component", "scaled to zero": "component", "pools": "instance_types",
    "prefix aware": "routing: prefix_aware", "measured": "metrics",
    "idle release": "component", "scheduled component": "component",
}  # fmt: skip


def _document(changes: dict[str, Any]) -> dict[str, Any]:
    merged = {key: value for key, value in (BASE | changes).items() if value is not None}
    return terraform.document(configuration.parse(merged))


def _faults(block: dict[str, Any], schema: dict[str, Any], path: str) -> Iterator[str]:
    known = {name.rstrip("*"): kind for name, kind in schema.items()}
    required = {name.rstrip("*") for name in schema if name.endswith("*")}
    yield from (f"{path}.{name} is missing" for name in sorted(required - block.keys()))
    for name, value in block.items():
        kind = known.get(name)
        if kind is None:
            yield f"{path} has no {name}"
        elif isinstance(kind, dict):
            for each in value if isinstance(value, list) else [value]:
                yield from _faults(each, kind, f"{path}.{name}")
        elif not isinstance(value, TYPES[kind]):
            yield f"{path}.{name} is a {kind}, not {value!r}"


@pytest.mark.parametrize("case", [case for case in CASES if case not in LACKING])
def test_the_provider_has_every_attribute(case: str) -> None:
    document = _document(CASES[case])
    faults = [
        fault
        for kind, named in document["resource"].items()
        for label, block in named.items()
        for fault in _faults(
            {key: value for key, value in block.items() if key not in META},
            PROVIDER[kind],
            f"{kind}.{label}",
        )
    ]
    assert faults == []
    for label, block in (
        document.get("data", {}).get("aws_secretsmanager_secret_version", {}).items()
    ):
        schema = PROVIDER["data.aws_secretsmanager_secret_version"]
        assert list(_faults(block, schema, label)) == []


@pytest.mark.parametrize("case", [case for case in CASES if case not in LACKING])
def test_every_reference_names_a_resource_of_the_document(case: str) -> None:
    document = _document(CASES[case])
    text = json.dumps(document["resource"]).replace("$${", "")
    references = re.findall(r"\$\{(data\.)?(\w+)\.([\w-]+)\.", text)
    references += [("", *name.split(".")) for name in re.findall(r'"(aws_\w+\.[\w-]+)"', text)]
    assert references
    for data, kind, label in references:
        assert label in document["data" if data else "resource"][kind]


@pytest.mark.parametrize("case", LACKING)
def test_what_the_provider_lacks_is_refused_by_name(case: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{LACKING[case]}: Terraform's provider")):
        _document(CASES[case])


def test_a_secret_is_a_reference_and_a_text_is_no_template() -> None:
    document = _document(CASES["secret"] | {"env": {"A": "${b} %{c}"}})
    [model] = document["resource"]["aws_sagemaker_model"].values()
    variables = model["primary_container"]["environment"]
    assert variables["HF_TOKEN"] == "${data.aws_secretsmanager_secret_version.hub.secret_string}"
    assert variables["A"] == "$${b} %%{c}"


def test_the_version_is_that_of_the_recorded_attributes() -> None:
    major, minor = PROVIDER["version"].split(".")[:2]
    assert terraform.PROVIDER["version"] == f">= {major}.{minor}"
