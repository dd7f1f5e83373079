"""`scale` and `adapters`: changes to a running deployment."""

from pathlib import Path

import click

from sagemaker_deploy import account
from sagemaker_deploy.aws import Aws
from sagemaker_deploy.commands import options
from sagemaker_deploy.commands.output import Progress, print_json, print_table
from sagemaker_deploy.config import Config, Scaling
from sagemaker_deploy.errors import ConfigError, NotFound
from sagemaker_deploy.execute import Executor
from sagemaker_deploy.plan import changes, scaling
from sagemaker_deploy.plan.deploy import artifact_prefix
from sagemaker_deploy.plan.steps import Plan, Step, Upload

poll = click.option("--poll", default=10.0, show_default=True, help="Seconds between looks at AWS.")


@click.command()
@options.target_options
@click.option("--instances", type=click.IntRange(1), help="Fixed number of instances.")
@click.option("--copies", type=click.IntRange(0), help="Fixed number of copies of a component.")
@click.option("--component", help="The component; else the deployment's only one.")
@click.option("--min", "least", type=click.IntRange(0), help="Automatic scaling: fewest.")
@click.option("--max", "most", type=click.IntRange(1), help="Automatic scaling: most.")
@click.option("--target", type=float, help="Automatic scaling: concurrent requests for a copy.")
@click.option("--off", is_flag=True, help="Stop automatic scaling.")
@poll
def scale(
    name: str,
    aws: Aws,
    config: Config | None,
    instances: int | None,
    copies: int | None,
    component: str | None,
    least: int | None,
    most: int | None,
    target: float | None,
    off: bool,
    poll: float,
) -> None:
    """Change the number of serving instances or copies, by hand or automatically.

    \b
      sagemaker_deploy scale chat --instances 3
      sagemaker_deploy scale chat --min 1 --max 8 --target 12
      sagemaker_deploy scale chat --copies 0        # a component; nothing is served
      sagemaker_deploy scale chat --off
    """
    automatic = (least, most, target) != (None, None, None)
    if sum([instances is not None, copies is not None, automatic, off]) != 1:
        raise ConfigError(["give --instances, --copies, --min/--max/--target, or --off"])
    deployed = account.find_deployed(aws, name, None)
    if not deployed.endpoint:
        raise NotFound(f"endpoint {name} does not exist in {aws.region}", hint="use `deploy`")
    component = component or next(iter(deployed.components), None)
    steps: list[Step]
    if instances is not None:
        steps = [changes.instances(name, instances)]
    elif copies is not None:
        if component is None:
            raise ConfigError([f"--copies: {name} has no inference components; use --instances"])
        steps = [changes.copies(component, copies)]
    elif off:
        steps = [scaling.removal(scaling.where(*scaled)) for scaled in deployed.targets]
    else:
        if most is None or target is None:
            raise ConfigError(["--min, --max and --target: give at least --max and --target"])
        new_scaling = Scaling(
            min=1 if least is None else least, max=most, target_concurrency=target
        )
        steps = scaling.steps_for(name, component, new_scaling, is_async=_is_async(aws, name))
    _apply(aws, name, tuple(steps), poll)


def _is_async(aws: Aws, name: str) -> bool:
    return "AsyncInferenceConfig" in (account.describe_endpoint(aws, name) or {})


@click.group()
def adapters() -> None:
    """LoRA adapters over a deployment's inference component.

    The endpoint must be deployed with `component:`. Each adapter becomes a component of its own,
    loaded into the base component's container; call it with `invoke NAME --component ADAPTER`.
    """


@adapters.command("list")
@options.target_options
@options.as_json
def list_adapters(name: str, aws: Aws, config: Config | None, as_json: bool) -> None:
    """List the adapters of the endpoint NAME and their states."""
    rows = _adapters(aws, name)
    if as_json:
        print_json([dict(zip(("name", "base", "status"), row, strict=True)) for row in rows])
    else:
        print_table(f"Adapters of {name}", ("Adapter", "Base", "Status"), rows)


@adapters.command("add")
@click.argument("endpoint")
@click.argument("adapter")
@click.argument("source")
@click.option("--base", help="Base component; else the endpoint's only one.")
@click.option("--bucket", help="Where a folder on this machine is uploaded.")
@options.region
@options.profile
@poll
def add_adapter(
    endpoint: str,
    adapter: str,
    source: str,
    base: str | None,
    bucket: str | None,
    region: str | None,
    profile: str | None,
    poll: float,
) -> None:
    """Load the adapter SOURCE (a folder here, or s3://....tar.gz) as ADAPTER into ENDPOINT."""
    aws = Aws(region, profile)
    bases = list(account.find_deployed(aws, endpoint, None).components)
    known = {row[0] for row in _adapters(aws, endpoint)}
    candidates = [base] if base else [component for component in bases if component not in known]
    if len(candidates) != 1:
        raise ConfigError([f"--base: {endpoint} has {len(candidates)} base components; name one"])
    steps: list[Step | Upload] = []
    url = source
    if not source.startswith("s3://"):
        if not bucket:
            raise ConfigError(["--bucket: needed to upload a folder"])
        key = f"{artifact_prefix(endpoint)}adapters/{adapter}.tar.gz"
        upload = Upload(f"pack and upload {source}", Path(source), None, bucket, key)
        steps, url = [upload], upload.resource
    steps.append(changes.add_adapter(endpoint, candidates[0], adapter, url))
    _apply(aws, endpoint, tuple(steps), poll)


@adapters.command("remove")
@click.argument("endpoint")
@click.argument("adapter")
@options.region
@options.profile
@poll
def remove_adapter(
    endpoint: str, adapter: str, region: str | None, profile: str | None, poll: float
) -> None:
    """Unload ADAPTER from ENDPOINT."""
    aws = Aws(region, profile)
    if adapter not in {row[0] for row in _adapters(aws, endpoint)}:
        raise NotFound(f"{endpoint} has no adapter {adapter}")
    _apply(aws, endpoint, (changes.remove_adapter(adapter),), poll)


def _adapters(aws: Aws, endpoint: str) -> list[tuple[str, str, str]]:
    rows = []
    for name in account.find_deployed(aws, endpoint, None).components:
        record = aws.call("sagemaker", "describe_inference_component", InferenceComponentName=name)
        if base := record.get("Specification", {}).get("BaseInferenceComponentName"):
            rows.append((name, base, record["InferenceComponentStatus"]))
    return rows


def _apply(aws: Aws, name: str, steps: tuple[Step | Upload, ...], poll_s: float) -> None:
    Executor(aws, Progress(), poll_s).apply(Plan(name, steps))
