"""`why`: the cause of a failed endpoint and its remedy."""

import dataclasses
from pathlib import Path

import click

from sagemaker_deploy.aws import Aws
from sagemaker_deploy.commands import options
from sagemaker_deploy.commands.output import print_json
from sagemaker_deploy.config import Config
from sagemaker_deploy.diagnosis.diagnose import Diagnosis, diagnose
from sagemaker_deploy.diagnosis.evidence import Evidence
from sagemaker_deploy.diagnosis.gather import gather, read_logs, start_timeout_s
from sagemaker_deploy.errors import ConfigError, EndpointFailed
from sagemaker_deploy.plan.requests import COMPONENT_LOGS, ENDPOINT_LOGS, component_name


@click.command()
@click.argument("name", required=False)
@click.option("-f", "--config", "path", type=click.Path(path_type=Path),
              help="File whose name, region and profile are meant.")  # fmt: skip
@click.option("--log", "log_path", type=click.Path(path_type=Path),
              help="A container's log in a file, in place of AWS's.")  # fmt: skip
@click.option("--reason", help="The FailureReason, beside --log.")
@options.region
@options.profile
@options.as_json
def why(
    name: str | None,
    path: Path | None,
    log_path: Path | None,
    reason: str | None,
    region: str | None,
    profile: str | None,
    as_json: bool,
) -> None:
    """Say why the endpoint NAME failed, and what to do.

    \b
      sagemaker_deploy why chat
      sagemaker_deploy why --log container.log --reason "did not pass the ping health check"

    Reads the reasons that SageMaker and Application Auto Scaling give, the end of the containers'
    logs and their answers to /ping, and names one cause, one remedy, and the line that shows it.
    The second form needs no AWS account.
    """
    if log_path or reason:
        _print(*_offline(name or "the endpoint", log_path, reason), as_json)
        return
    _print(*_of_endpoint(name, path, region, profile), as_json)


def explained(aws: Aws, config: Config, error: EndpointFailed) -> EndpointFailed:
    """Give an error of a deployment that failed its cause and remedy as a hint.

    The run's resources have been removed by now, so their names lead to the logs.
    """
    groups = [ENDPOINT_LOGS + config.name]
    if config.component is not None:
        groups.append(COMPONENT_LOGS + component_name(config))
    log, has_log = read_logs(aws, groups)
    evidence = Evidence(config.name, "Failed", (error.message,), log, has_log)
    diagnosis = diagnose(evidence, config.start_timeout_s)
    return type(error)(error.message, hint=f"{diagnosis.cause}; {diagnosis.remedy}")


def _offline(name: str, log_path: Path | None, reason: str | None) -> tuple[Evidence, Diagnosis]:
    if log_path and not log_path.is_file():
        raise ConfigError([f"--log {log_path}: no such file"])
    lines = tuple(log_path.read_text(errors="replace").splitlines()) if log_path else ()
    reasons = (reason,) if reason else ("the container did not pass the ping health check",)
    evidence = Evidence(name, "Failed", reasons, lines, bool(lines) if log_path else None)
    return evidence, diagnose(evidence)


def _of_endpoint(
    name: str | None, path: Path | None, region: str | None, profile: str | None
) -> tuple[Evidence, Diagnosis]:
    target, aws, _ = options.target(name, path, region, profile)
    evidence = gather(aws, target)
    return evidence, diagnose(evidence, start_timeout_s(aws, target))


def _print(evidence: Evidence, diagnosis: Diagnosis, as_json: bool) -> None:
    if as_json:
        summary = {"endpoint": evidence.name, "status": evidence.status, "pings": evidence.pings}
        print_json(summary | {"reasons": evidence.reasons} | dataclasses.asdict(diagnosis))
        return
    click.echo(f"{evidence.name}: {evidence.status}")
    click.echo(f"  cause:  {diagnosis.cause}")
    click.echo(f"  remedy: {diagnosis.remedy}")
    if diagnosis.shown_by:
        click.echo(f"  seen:   {diagnosis.shown_by}")
    for reason in evidence.reasons:
        if reason.strip() != diagnosis.shown_by:
            click.echo(f"  reason: {reason}")
