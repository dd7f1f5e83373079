"""`scale`: the number of instances or copies, fixed or automatic."""

from collections.abc import Mapping
from typing import Any

import click

from sagemaker_deploy import account
from sagemaker_deploy.aws import Aws
from sagemaker_deploy.commands import options
from sagemaker_deploy.commands.output import Progress
from sagemaker_deploy.config import Config
from sagemaker_deploy.errors import ConfigError, NotFound
from sagemaker_deploy.execute import Executor
from sagemaker_deploy.plan import changes
from sagemaker_deploy.plan.capacity import scaling
from sagemaker_deploy.plan.steps import Plan, Step
from sagemaker_deploy.sections import Scaling


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
@click.option("--weights", help="Shares of the traffic by variant, as in AllTraffic=9,new=1.")
@click.option("--off", is_flag=True, help="Stop automatic scaling.")
@options.poll
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
    weights: str | None,
    off: bool,
    poll: float,
) -> None:
    """Change the number of serving instances or copies, or the variants' shares of the traffic.

    \b
      sagemaker_deploy scale chat --instances 3
      sagemaker_deploy scale chat --min 1 --max 8 --target 12
      sagemaker_deploy scale chat --copies 0        # a component; nothing is served
      sagemaker_deploy scale chat --off
      sagemaker_deploy scale chat --weights AllTraffic=9,candidate=1
    """
    automatic = (least, most, target_concurrency) != (None, None, None)
    if sum([instances is not None, copies is not None, automatic, bool(weights), off]) != 1:
        raise ConfigError(["give --instances, --copies, --min/--max/--target, --weights, or --off"])
    endpoint = account.describe_endpoint(aws, name)
    if endpoint is None:
        raise NotFound(f"endpoint {name} does not exist in {aws.region}", hint="use `deploy`")
    steps: list[Step]
    if instances is not None:
        steps = [changes.instances(name, instances)]
    elif weights:
        steps = [changes.weights(name, _shares(endpoint, weights))]
    elif copies is not None:
        scaled = _scaled_component(aws, name, component)
        if scaled is None:
            raise ConfigError([f"--copies: {name} has no inference components; use --instances"])
        steps = [changes.copies(scaled, copies)]
    elif off:
        steps = [scaling.removal(target) for target in _targets(aws, name)]
    else:
        if most is None or target_concurrency is None:
            raise ConfigError(["--min, --max and --target: give at least --max and --target"])
        new_scaling = Scaling(
            min=1 if least is None else least, max=most, target_concurrency=target_concurrency
        )
        is_async = "AsyncInferenceConfig" in endpoint
        target = scaling.Target(name, _scaled_component(aws, name, component), is_async)
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


def _targets(aws: Aws, endpoint: str) -> list[dict[str, str]]:
    components = account.component_names(aws, endpoint)
    return [
        scaling.where(each["ResourceId"], each["ScalableDimension"])
        for each in account.scalable_targets(aws, endpoint, components)
    ]


def _shares(endpoint: Mapping[str, Any], weights: str) -> dict[str, float]:
    """Parse --weights. Raises ConfigError for an unknown variant or a share that is no number."""
    known = [each["VariantName"] for each in endpoint.get("ProductionVariants", [])]
    shares = {}
    for name, text in options.pairs("--weights", tuple(weights.split(","))).items():
        if name not in known:
            raise ConfigError(
                [f"--weights {name}: {endpoint['EndpointName']} has {', '.join(known)}"]
            )
        try:
            shares[name] = float(text)
        except ValueError as error:
            raise ConfigError([f"--weights {name}: must be a number, not {text!r}"]) from error
    return shares


def _apply(aws: Aws, name: str, steps: tuple[Step, ...], poll_s: float) -> None:
    Executor(aws, Progress(), poll_s).apply(Plan(name, steps))
