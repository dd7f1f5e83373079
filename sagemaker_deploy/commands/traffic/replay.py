"""`replay`: recorded requests to another endpoint, image or instance."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import click

from sagemaker_deploy import invoke as calls
from sagemaker_deploy.aws import Aws
from sagemaker_deploy.commands import options
from sagemaker_deploy.commands.output import print_json
from sagemaker_deploy.errors import ConfigError, InvocationFailed
from sagemaker_deploy.replay import report as reports
from sagemaker_deploy.replay import send
from sagemaker_deploy.replay.records import Recorded, read_records, read_s3


@click.command()
@click.argument("capture")
@click.option("--to", "target", required=True, metavar="URL|ENDPOINT[/COMPONENT]",
              help="A container's URL, or an endpoint.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), help="For requests whose own seed is not known.")
@click.option("--clients", default=1, show_default=True, type=click.IntRange(1, 256))
@click.option("--limit", type=click.IntRange(1), help="Only so many requests.")
@click.option("--api-key", envvar="API_KEY", help="Key of a container's URL; else API_KEY.")
@click.option("--save", type=click.Path(path_type=Path),
              help="Write requests and new answers, for a later replay.")  # fmt: skip
@click.option(
    "--exact",
    is_flag=True,
    help="Exit with 7 if an answer changed or failed, or none was recorded.",
)
@options.region
@options.profile
@options.as_json
def replay(
    capture: str,
    target: str,
    seed: int | None,
    clients: int,
    limit: int | None,
    api_key: str | None,
    save: Path | None,
    exact: bool,
    region: str | None,
    profile: str | None,
    as_json: bool,
) -> None:
    """Send the requests in CAPTURE to a target and show which answers changed.

    \b
      sagemaker_deploy replay s3://bucket/capture/chat/ --to chat-2
      sagemaker_deploy replay requests.jsonl --to http://127.0.0.1:8080 --exact

    CAPTURE is a file or folder of JSON lines, or an S3 prefix: SageMaker's data capture, or a log
    that `--save` or `proxy --record` wrote.
    """
    records = read_records(capture, lambda url: read_s3(Aws(region, profile), url))[:limit]
    if target.startswith(("http://", "https://")):
        sender = send.to_url(target, api_key)
    else:
        endpoint, _, component = target.partition("/")
        sender = send.to_endpoint(Aws(region, profile), calls.Address(endpoint, component or None))
    answers = []
    with _saving(save) as write, ThreadPoolExecutor(clients) as pool:
        results = pool.map(lambda record: send.replay(record, sender, seed), records)
        for record, answer in zip(records, results, strict=True):
            answers.append(answer)
            write(_line(record, answer))
    report = reports.make_report(records, answers)
    if as_json:
        print_json(report)
    else:
        for line in reports.text(report):
            click.echo(line)
    if exact and (count := report["changed"] + report["failed"]):
        raise InvocationFailed(f"{count} answers changed or failed")
    if exact and not report["compared"]:
        raise InvocationFailed("no request has a recorded answer: there is nothing to compare")


@contextmanager
def _saving(path: Path | None) -> Iterator[Callable[[str], object]]:
    """Write lines to a file as they come, so that a run which ends early leaves some."""
    if path is None:
        yield lambda line: None
        return
    try:
        file = path.open("w", buffering=1)
    except OSError as error:
        raise ConfigError([f"--save {path}: {error}"]) from error
    with file:
        yield file.write


def _line(record: Recorded, answer: send.Replayed) -> str:
    fields = dataclasses.asdict(record)
    fields |= {"answer": answer.answer, "latency_s": answer.latency_s}
    return json.dumps(fields | {"replay_info": answer.replay_info}) + "\n"
