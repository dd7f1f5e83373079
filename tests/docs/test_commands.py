"""Every command in the documents can be parsed by the program that it names.

tests/integration/ui/test_readme.py runs what calls a server, tests/sdk the code for SageMaker, and
tests/deploy parses the commands of sagemaker_deploy.
"""

import importlib
import re
from pathlib import Path

import click
import pytest

from container.__main__ import main as container_command
from tests.support.documented_commands import ROOT, Command, documented_commands

COMMANDS = list(documented_commands())
# Programs of others; `curl` is run where README has it.
OTHERS = {"pip", "git", "cd", "export", "curl"}


def _options(words: tuple[str, ...]) -> set[str]:
    return {word.partition("=")[0] for word in words if word.startswith("--")}


def _of(module: str) -> list[Command]:
    return [command for command in COMMANDS if command.of_module(module) is not None]


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_names_what_exists(command: Command) -> None:
    program, *rest = command.words
    name = Path(program).name
    if name in ("python", "python3"):
        if rest[0] == "-m":
            known = {"venv", "pytest", "container", "sagemaker_deploy", "models.bench_kinds"}
            assert rest[1] in known or rest[1].startswith("benchmarks"), command
        else:
            script = ROOT / rest[0]
            assert _options(command.words) <= _options_of(script), command
    elif name.endswith(".sh"):
        assert (ROOT / program).is_file()
    else:
        assert name in OTHERS | {"make"}, f"say in this test how to check: {command}"


def _options_of(script: Path) -> set[str]:
    """Return the options that a script's text names, with those of its folder's modules."""
    texts = [script.read_text(), *(path.read_text() for path in script.parent.rglob("*.py"))]
    return {option for text in texts for option in re.findall(r'"(--[a-z][a-z0-9-]*)"', text)}


@pytest.mark.parametrize("command", _of("container"), ids=str)
def test_commands_of_the_container_are_parsed(command: Command) -> None:
    name, *arguments = command.of_module("container") or ()
    assert isinstance(container_command, click.Group)
    container_command.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("command", _of("benchmarks"), ids=str)
def test_commands_of_the_benchmark_are_parsed(command: Command) -> None:
    parser = importlib.import_module("benchmarks.__main__")._parser()
    parser.parse_args(list(command.of_module("benchmarks") or ()))


@pytest.mark.parametrize("command", _of("pytest"), ids=str)
def test_tests_that_are_named_exist(command: Command) -> None:
    paths = [word for word in command.words if word.startswith("tests/")]
    assert paths
    assert all((ROOT / path).exists() for path in paths)


def test_there_are_many() -> None:
    assert len(COMMANDS) > 60
