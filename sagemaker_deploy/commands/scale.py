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
from sagemaker_deploy.plan.deploy import folder_stamp
from sagemaker_deploy.plan.requests import artifact_prefix
from sagemaker_deploy.plan.steps import Plan, Step, Upload

poll = click.option("--poll", default=10.0, show_default=True, help="Seconds between looks at AWS.")


@click.command()
@options.target_options
@click.option("--instances", type=click.IntRange(1), help="Fixed number of instances.")
@click.option("--copies", type=click.IntRange(0), help="Fixed number of copies of a component.")
@click.option("--component", help="The component; else the deployment's only one.")
@click.option("--min", "least", type=click.IntRange(0), help="Automatic scaling: fewest.")
@click.option("--max", "most", type=click.IntRange(1), help="Automatic scaling: most.")
@click.option(
    "--target",
    "target_concurrency",
    type=float,
    help="Automatic scaling: concurrent requests for a copy.",
)
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
    target_concurrency: float | None,
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
    automatic = (least, most, target_concurrency) != (None, None, None)
    if sum([instances is not None, copies is not None, automatic, off]) != 1:
        raise ConfigError(["give --instances, --copies, --min/--max/--target, or --off"])
    deployed = account.find_deployed(aws, name)
    if not deployed.endpoint:
        raise NotFound(f"endpoint {name} does not exist in {aws.region}", hint="use `deploy`")
    steps: list[Step]
    if instances is not None:
        steps = [changes.instances(name, instances)]
    elif copies is not None:
        scaled = _scaled_component(aws, name, component)
        if scaled is None:
            raise ConfigError([f"--copies: {name} has no inference components; use --instances"])
        steps = [changes.copies(scaled, copies)]
    elif off:
        steps = [scaling.removal(scaling.where(*target)) for target in deployed.targets]
    else:
        if most is None or target_concurrency is None:
            raise ConfigError(["--min, --max and --target: give at least --max and --target"])
        new_scaling = Scaling(
            min=1 if least is None else least, max=most, target_concurrency=target_concurrency
        )
        target = scaling.Target(name, _scaled_component(aws, name, component), _is_async(aws, name))
        steps = scaling.steps_for(target, new_scaling, account.registered(aws, target))
    _apply(aws, name, tuple(steps), poll)


def _scaled_component(aws: Aws, endpoint: str, chosen: str | None) -> str | None:
    """Return the component to scale: the chosen one, or the only one that is no adapter."""
    bases = {
        component["InferenceComponentName"]: account.base_of(component)
        for component in account.components(aws, endpoint)
    }
    models = sorted(name for name, base in bases.items() if base is None)
    if chosen is None:
        if len(models) > 1:
            names = ", ".join(models)
            raise ConfigError([f"--component: {endpoint} has {names}; name the one to scale"])
        return models[0] if models else None
    if chosen not in bases:
        known = ", ".join(models) or "none"
        raise NotFound(f"{endpoint} has no inference component {chosen}; it has: {known}")
    if base := bases[chosen]:
        raise ConfigError(
            [f"--component: {chosen} is an adapter, which scales with its base; use {base}"]
        )
    return chosen


def _is_async(aws: Aws, name: str) -> bool:
    return "AsyncInferenceConfig" in (account.describe_endpoint(aws, name) or {})


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
    known = account.components(aws, endpoint)
    models = [each["InferenceComponentName"] for each in known if not account.base_of(each)]
    if adapter in {each["InferenceComponentName"] for each in known}:
        raise ConfigError(
            [f"ADAPTER: {endpoint} has a component {adapter}; remove it first, or name another"]
        )
    candidates = [base] if base else models
    if len(candidates) != 1:
        names = ", ".join(models) or "none"
        raise ConfigError([f"--base: the base components of {endpoint} are: {names}; name one"])
    steps: list[Step | Upload] = []
    url = source
    if not source.startswith("s3://"):
        steps, url = _adapter_upload(endpoint, adapter, Path(source), bucket)
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


def _adapter_upload(
    endpoint: str, adapter: str, source: Path, bucket: str | None
) -> tuple[list[Step | Upload], str]:
    if not bucket:
        raise ConfigError(["--bucket: needed to upload a folder"])
    if not source.exists():
        raise ConfigError([f"SOURCE: {source} does not exist"])
    # By content: another archive never replaces the one that a running adapter starts from.
    stamp = folder_stamp(source, None)
    key = f"{artifact_prefix(endpoint)}adapters/{adapter}-{stamp}.tar.gz"
    upload = Upload(f"pack and upload {source}", source, None, bucket, key)
    return [upload], upload.resource


def _adapters(aws: Aws, endpoint: str) -> list[tuple[str, str, str]]:
    return [
        (each["InferenceComponentName"], base, each["InferenceComponentStatus"])
        for each in account.components(aws, endpoint)
        if (base := account.base_of(each))
    ]


def _apply(aws: Aws, name: str, steps: tuple[Step | Upload, ...], poll_s: float) -> None:
    Executor(aws, Progress(), poll_s).apply(Plan(name, steps))
