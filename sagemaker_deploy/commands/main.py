"""The group of all commands; reports errors as one line, a hint and an exit code."""

import sys

import click

from sagemaker_deploy.commands import (
    bench,
    deployment,
    invoke,
    jobs,
    local,
    logs,
    status,
    template,
    why,
)
from sagemaker_deploy.commands.running import adapters, pause, scale
from sagemaker_deploy.commands.traffic import proxy, replay
from sagemaker_deploy.errors import ConfigError, DeployError

EXIT_CODES = """
Exit codes: 0 done; 2 wrong configuration; 3 something is not installed; 4 not found; 5 AWS refused;
6 an endpoint or job failed; 7 an invocation failed; 130 interrupted.
"""


class Commands(click.Group):
    """A group whose commands report DeployError in one line."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; a DeployError becomes its exit code."""
        try:
            return super().invoke(ctx)
        except DeployError as error:
            report(error)
            sys.exit(error.exit_code)


def report(error: DeployError) -> None:
    """Print an error to standard error."""
    problems = error.problems if isinstance(error, ConfigError) else [error.message]
    for problem in problems:
        click.echo(f"error: {problem}", err=True)
    if error.hint:
        click.echo(f"  hint: {error.hint}", err=True)


@click.group(cls=Commands, epilog=EXIT_CODES, context_settings={"max_content_width": 100})
def main() -> None:
    """Deploy language models to SageMaker with this container, and call them.

    Start with `local`: an endpoint on this machine that boto3 and the SageMaker SDK can call,
    without Docker and without an AWS account.
    """


for command in (
    local.local,
    deployment.plan,
    deployment.deploy,
    deployment.update,
    deployment.delete,
    invoke.invoke,
    status.status,
    why.why,
    logs.logs,
    scale.scale,
    pause.pause,
    pause.resume,
    adapters.adapters,
    jobs.batch,
    jobs.async_call,
    bench.bench,
    proxy.proxy,
    replay.replay,
    template.template,
):
    main.add_command(command)
