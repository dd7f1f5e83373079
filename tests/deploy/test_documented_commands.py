"""Every command of sagemaker_deploy, and every deploy.yaml, in the documents."""

import contextlib
import re
from typing import Any

import click
import pytest
import yaml

from sagemaker_deploy.commands.main import main
from sagemaker_deploy.config import parse
from tests.support.documented_commands import ROOT, Command, documented_commands

COMMANDS = [
    command
    for command in documented_commands()
    if command.of_module("sagemaker_deploy") is not None
]
# What a fragment of a configuration leaves out.
WHOLE: dict[str, Any] = {
    "name": "chat",
    "image": "000000000000.dkr.ecr.us-east-1.amazonaws.com/llm:1",
    "role": "arn:aws:iam::000000000000:role/SageMaker",
    "model": {"id": "org/model"},
    "instance_type": "ml.g5.xlarge",
}


def _configurations() -> list[dict[str, Any]]:
    texts = [(ROOT / "docs" / name).read_text() for name in ("deploying.md", "scaling.md")]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", "\n".join(texts), re.S | re.M)
    return [yaml.safe_load(code) for kind, code in blocks if kind == "yaml"]


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_is_parsed(command: Command) -> None:
    arguments = list(command.of_module("sagemaker_deploy") or ())
    group: click.Command = main
    while isinstance(group, click.Group) and arguments and not arguments[0].startswith("-"):
        group = group.commands[arguments.pop(0)]
    with contextlib.suppress(click.exceptions.Exit):  # of --help
        group.make_context("sagemaker_deploy", arguments)


@pytest.mark.parametrize("values", _configurations(), ids=lambda values: next(iter(values)))
def test_a_configuration_is_valid(values: dict[str, Any]) -> None:
    parse(values if "model" in values else WHOLE | values)


def test_there_are_some() -> None:
    assert len(COMMANDS) > 10
    assert len(_configurations()) >= 3
