"""`logs`: the CloudWatch logs of an endpoint's containers."""

import time
from datetime import UTC, datetime

import click

from sagemaker_deploy.aws import Aws
from sagemaker_deploy.commands import options
from sagemaker_deploy.config import Config
from sagemaker_deploy.errors import ConfigError, NotFound
from sagemaker_deploy.plan.requests import COMPONENT_LOGS, ENDPOINT_LOGS, JOB_LOGS

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@click.command()
@options.target_options
@click.option("--follow", is_flag=True, help="Go on until Ctrl-C.")
@click.option("--since", default="1h", show_default=True, help="How far back: 90s, 10m, 2h, 1d.")
@click.option("--component", help="An inference component's log.")
@click.option("--job", help="A transform job's log.")
@click.option("--match", default="", help="CloudWatch filter pattern.")
@click.option("--poll", default=2.0, show_default=True, help="Seconds between looks at AWS.")
def logs(
    name: str,
    aws: Aws,
    config: Config | None,
    follow: bool,
    since: str,
    component: str | None,
    job: str | None,
    match: str,
    poll: float,
) -> None:
    """Print the log lines of an endpoint's containers, oldest first; --follow waits for more."""
    group = f"{COMPONENT_LOGS}{component}" if component else f"{ENDPOINT_LOGS}{name}"
    prefix = {"logStreamNamePrefix": job} if job else {}
    group = JOB_LOGS if job else group
    start = int((time.time() - seconds(since)) * 1000)
    printed_ids: set[str] = set()
    while True:
        try:
            for page in aws.pages(
                "logs", "filter_log_events", logGroupName=group, startTime=start,
                filterPattern=match, **prefix,
            ):  # fmt: skip
                for event in page["events"]:
                    if event["eventId"] not in printed_ids:
                        printed_ids.add(event["eventId"])
                        start = max(start, event["timestamp"])
                        _print(event)
        except NotFound as error:
            if not follow:
                hint = "no container has written yet, or the name is another's"
                raise NotFound(f"log group {group} does not exist", hint=hint) from error
        if not follow:
            return
        time.sleep(poll)


def seconds(text: str) -> float:
    """Convert a span such as 10m to seconds. Raises ConfigError."""
    number, unit = text[:-1], text[-1:]
    if unit not in UNITS or not number.isdigit():
        raise ConfigError([f"--since {text}: must be a number and s, m, h or d"])
    return int(number) * UNITS[unit]


def _print(event: dict[str, object]) -> None:
    moment = datetime.fromtimestamp(float(str(event["timestamp"])) / 1000, UTC)
    stream = str(event.get("logStreamName", "")).rpartition("/")[2][-12:]
    click.echo(f"{moment:%H:%M:%S} {stream:<12} {str(event['message']).rstrip()}")
