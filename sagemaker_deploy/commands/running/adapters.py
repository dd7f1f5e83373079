"""`adapters`: LoRA adapters over a deployment's inference component."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sagemaker_deploy import account
from sagemaker_deploy.aws import Aws
from sagemaker_deploy.commands import options
from sagemaker_deploy.commands.output import Progress, print_json, print_table
from sagemaker_deploy.config import Config
from sagemaker_deploy.errors import ConfigError, NotFound
from sagemaker_deploy.execute import Executor
from sagemaker_deploy.plan import adapters as plans
from sagemaker_deploy.plan.deploy import folder_stamp
from sagemaker_deploy.plan.requests import artifact_prefix
from sagemaker_deploy.plan.steps import Plan, Step, Upload

Described = Mapping[str, Any]
COLUMNS = ("Adapter", "Base", "Status", "Archive")
FIELDS = ("name", "base", "status", "archive")


@click.group()
def adapters() -> None:
    """LoRA adapters over a deployment's inference component.

    The endpoint must be deployed with `component:`. Each adapter becomes its own component,
    loaded into the base component's container; call it with `invoke NAME --component ADAPTER`.
    """


@adapters.command("list")
@options.target_options
@options.as_json
def list_adapters(name: str, aws: Aws, config: Config | None, as_json: bool) -> None:
    """List the adapters of the endpoint NAME, their states and archives."""
    described = [each for each in account.components(aws, name) if account.base_of(each)]
    rows = [
        (each["InferenceComponentName"], account.base_of(each), each["InferenceComponentStatus"],
         plans.archive_of(each))
        for each in described
    ]  # fmt: skip
    if as_json:
        print_json([dict(zip(FIELDS, row, strict=True)) for row in rows])
    else:
        print_table(f"Adapters of {name}", COLUMNS, rows)


@adapters.command("add")
@click.argument("endpoint")
@click.argument("adapter")
@click.argument("source")
@click.option("--base", help="Base component; else the endpoint's only one.")
@click.option("--prefix", is_flag=True,
              help="Name it ENDPOINT-ADAPTER: an account has each name once.")  # fmt: skip
@options.bucket
@options.region
@options.profile
@options.poll
def add_adapter(
    endpoint: str,
    adapter: str,
    source: str,
    base: str | None,
    prefix: bool,
    bucket: str | None,
    region: str | None,
    profile: str | None,
    poll: float,
) -> None:
    """Load the adapter SOURCE (a folder here, or s3://....tar.gz) as ADAPTER into ENDPOINT."""
    aws = Aws(region, profile)
    adapter = plans.prefixed(endpoint, adapter) if prefix else adapter
    known = account.components(aws, endpoint)
    models = [each["InferenceComponentName"] for each in known if not account.base_of(each)]
    if adapter in {each["InferenceComponentName"] for each in known}:
        raise ConfigError(
            [f"ADAPTER: {endpoint} has a component {adapter}; use `adapters update`, remove it "
             "first, or name another"]
        )  # fmt: skip
    candidates = [base] if base else models
    if len(candidates) != 1:
        names = ", ".join(models) or "none"
        raise ConfigError([f"--base: the base components of {endpoint} are: {names}; name one"])
    steps, url = _archive(endpoint, adapter, source, bucket)
    _apply(aws, endpoint, [*steps, plans.add(endpoint, candidates[0], adapter, url)], poll)


@adapters.command("update")
@click.argument("endpoint")
@click.argument("adapter")
@click.argument("source")
@options.bucket
@options.region
@options.profile
@options.poll
def update_adapter(
    endpoint: str,
    adapter: str,
    source: str,
    bucket: str | None,
    region: str | None,
    profile: str | None,
    poll: float,
) -> None:
    """Replace ADAPTER's weights in place by those of SOURCE, under the same name.

    If they do not load, the old ones come back. `adapters rollback` brings them back later.
    """
    aws = Aws(region, profile)
    described = _find(aws, endpoint, adapter)
    steps, url = _archive(endpoint, described["InferenceComponentName"], source, bucket)
    if url == plans.archive_of(described):
        click.echo(f"{adapter} has this archive already; nothing to do")
        return
    _apply(aws, endpoint, [*steps, *plans.update(endpoint, described, url)], poll)


@adapters.command("rollback")
@click.argument("endpoint")
@click.argument("adapter")
@options.region
@options.profile
@options.poll
def roll_back_adapter(
    endpoint: str, adapter: str, region: str | None, profile: str | None, poll: float
) -> None:
    """Bring back the weights that ADAPTER had before its last update."""
    aws = Aws(region, profile)
    described = _find(aws, endpoint, adapter)
    previous = account.tags_of(aws, described["InferenceComponentArn"]).get(plans.PREVIOUS)
    if previous is None:
        raise NotFound(f"adapter {adapter} has not been updated by `adapters update`")
    _apply(aws, endpoint, plans.update(endpoint, described, previous), poll)


@adapters.command("remove")
@click.argument("endpoint")
@click.argument("adapter")
@options.region
@options.profile
@options.poll
def remove_adapter(
    endpoint: str, adapter: str, region: str | None, profile: str | None, poll: float
) -> None:
    """Unload ADAPTER from ENDPOINT. Its archive stays until the deployment is deleted."""
    aws = Aws(region, profile)
    name = _find(aws, endpoint, adapter)["InferenceComponentName"]
    _apply(aws, endpoint, [plans.remove(name)], poll)


def _find(aws: Aws, endpoint: str, adapter: str) -> Described:
    """Describe an adapter by its name, or by the name without the endpoint's prefix."""
    known = {
        each["InferenceComponentName"]: each
        for each in account.components(aws, endpoint)
        if account.base_of(each)
    }
    for name in (adapter, plans.prefixed(endpoint, adapter)):
        if name in known:
            return known[name]
    names = ", ".join(sorted(known)) or "none"
    raise NotFound(f"{endpoint} has no adapter {adapter}; it has: {names}")


def _archive(
    endpoint: str, adapter: str, source: str, bucket: str | None
) -> tuple[list[Step | Upload], str]:
    """Return the upload that a folder needs, and the archive's URL."""
    if source.startswith("s3://"):
        return [], source
    if not bucket:
        raise ConfigError(["--bucket: needed to upload a folder"])
    folder = Path(source)
    if not folder.exists():
        raise ConfigError([f"SOURCE: {source} does not exist"])
    # By content: another archive never replaces the one that a running adapter starts from.
    stamp = folder_stamp(folder, None)
    key = f"{artifact_prefix(endpoint)}adapters/{adapter}-{stamp}.tar.gz"
    upload = Upload(f"pack and upload {source}", folder, None, bucket, key)
    return [upload], upload.resource


def _apply(aws: Aws, name: str, steps: list[Step | Upload] | list[Step], poll_s: float) -> None:
    Executor(aws, Progress(), poll_s).apply(Plan(name, tuple(steps)))
