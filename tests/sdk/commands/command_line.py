"""Runs commands of sagemaker_deploy in this process."""

from click.testing import CliRunner, Result

from sagemaker_deploy.commands.main import main


def run_command(*arguments: str, expect: int = 0) -> Result:
    """Run a command and check its exit code."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == expect, (result.output, result.stderr, result.exception)
    return result
