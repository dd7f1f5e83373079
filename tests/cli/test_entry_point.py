"""One entry point: the container's commands and those of sagemaker_deploy, with completion."""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.support.servers import ROOT

PROGRAM = "from container.__main__ import main; main(prog_name='sagemaker-llm')"
HAS_BOTO3 = importlib.util.find_spec("boto3") is not None


def _run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, env=os.environ | variables,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def _completions(words: str) -> list[str]:
    variables = {"_SAGEMAKER_LLM_COMPLETE": "bash_complete", "COMP_WORDS": words}
    result = _run(**variables, COMP_CWORD=str(words.count(" ")))
    return [line.partition(",")[2] for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("sagemaker-llm ", {"serve", "chat", "doctor", "endpoint"}),
        ("sagemaker-llm ch", {"chat"}),
        ("sagemaker-llm chat --js", {"--json-schema"}),
        *([("sagemaker-llm endpoint de", {"delete", "deploy"})] if HAS_BOTO3 else []),
    ],
)
def test_the_tab_key_completes(words: str, expected: set[str]) -> None:
    assert expected <= set(_completions(words))


def test_hidden_commands_are_not_offered() -> None:
    assert not {"engine", "rank", "handler-worker"} & set(_completions("sagemaker-llm "))


def test_endpoints_are_managed_or_the_remedy_is_named() -> None:
    result = _run("endpoint", *(["--help"] if HAS_BOTO3 else []))
    assert result.returncode == (0 if HAS_BOTO3 else 1)
    assert (
        "deploy" if HAS_BOTO3 else "pip install -e '.[deploy]'"
    ) in result.stdout + result.stderr
