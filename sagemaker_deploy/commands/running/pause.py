"""`pause` and `resume`: a deployment that costs nothing for a while, or as little as it can."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from sagemaker_deploy import account
from sagemaker_deploy.aws import Aws
from sagemaker_deploy.commands import options
from sagemaker_deploy.commands.output import Progress, print_plan
from sagemaker_deploy.config import Config
from sagemaker_deploy.errors import ConfigError, NotFound
from sagemaker_deploy.execute import Executor
from sagemaker_deploy.plan.capacity import pause as plans
from sagemaker_deploy.plan.capacity import scaling, schedules
from sagemaker_deploy.plan.steps import Plan, Step


@click.command()
@options.target_options
@options.yes
@options.poll
def pause(name: str, aws: Aws, config: Config | None, yes: bool, poll: float) -> None:
    """Stop the deployment NAME until `resume`; its models, configs and archives stay.

    Inference components and asynchronous endpoints go to zero, and their scaling is suspended. A
    real-time endpoint is deleted, since it cannot go to zero; clients get an error meanwhile.
    """
    endpoint = account.describe_endpoint(aws, name)
    if endpoint is None:
        raise NotFound(f"endpoint {name} does not exist in {aws.region}; it may be paused already")
    components = account.components(aws, name)
    targets = [_where(target) for target in _targets(aws, name, components)]
    models = _models(components)
    warnings = []
    if models:
        steps = plans.pause_components(models, targets)
        if num_idle := plans.idle_instances(endpoint):
            warnings.append(
                f"{num_idle} instances stay and are billed; "
                "deploy with component.scale_in, and none do"
            )
    elif "AsyncInferenceConfig" in endpoint:
        steps = plans.pause_instances(name, targets)
    elif any("CurrentServerlessConfig" in each for each in endpoint.get("ProductionVariants", [])):
        raise ConfigError([f"{name} is serverless: it costs nothing while idle, so nothing pauses"])
    else:
        steps = [*map(scaling.removal, targets), *_deletion(aws, name, endpoint)]
        if targets:
            warnings.append("its scaling goes, too; `resume` with the file makes it again")
    _apply(aws, Plan(name, tuple(steps), warnings=tuple(warnings)), yes, poll)


@click.command()
@options.target_options
@click.option("--copies", type=click.IntRange(1), help="Copies of each component, or instances.")
@options.yes
@options.poll
def resume(
    name: str, aws: Aws, config: Config | None, copies: int | None, yes: bool, poll: float
) -> None:
    """Bring the paused deployment NAME back.

    With its file (deploy.yaml here, or -f), a real-time endpoint's scaling comes back as well.
    """
    known = config if config and config.name == name else None
    endpoint = account.describe_endpoint(aws, name)
    if endpoint is None:
        steps = _recreated(aws, name, known)
    else:
        components = account.components(aws, name)
        registered = _targets(aws, name, components)
        targets = [_where(target) for target in registered]
        least = {target["ResourceId"]: int(target["MinCapacity"]) for target in registered}
        if models := _models(components):
            paused = [model for model, count in models.items() if not count]  # others serve
            num_copies = {model: copies or _copies(known, model, least) for model in paused}
            steps = plans.resume_components(num_copies, targets)
        elif "AsyncInferenceConfig" in endpoint:
            count = copies or max(1, *least.values(), known.instance_count if known else 1)
            is_running = _instances(endpoint) > 0
            steps = (
                plans.end_suspension(targets)
                if is_running
                else plans.resume_instances(name, count, targets)
            )
        else:
            steps = []
        if not steps:
            raise ConfigError([f"{name} is not paused: it is {endpoint['EndpointStatus']}"])
    _apply(aws, Plan(name, tuple(steps)), yes, poll)


def _deletion(aws: Aws, name: str, endpoint: Mapping[str, Any]) -> list[Step]:
    config_name = str(endpoint["EndpointConfigName"])
    arn = account.config_arn(aws, config_name)
    when = datetime.now(UTC).isoformat(timespec="microseconds")
    return [plans.remember(name, config_name, arn, when), plans.delete_endpoint(name)]


def _targets(aws: Aws, name: str, components: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = [each["InferenceComponentName"] for each in components]
    return account.scalable_targets(aws, name, names)


def _where(target: Mapping[str, Any]) -> dict[str, str]:
    return scaling.where(target["ResourceId"], target["ScalableDimension"])


def _models(components: list[dict[str, Any]]) -> dict[str, int]:
    """Return the copies of each component that is no adapter, by its name."""
    return {
        each["InferenceComponentName"]: int(each["RuntimeConfig"]["DesiredCopyCount"])
        for each in components
        if not account.base_of(each)
    }


def _instances(endpoint: Mapping[str, Any]) -> int:
    counts = (each.get("DesiredInstanceCount", 0) for each in endpoint["ProductionVariants"])
    return sum(map(int, counts))


def _recreated(aws: Aws, name: str, config: Config | None) -> list[Step]:
    tags = account.config_tags(aws, name)
    config_name = plans.paused_config(tags)
    if config_name is None:
        which = f"{', '.join(sorted(tags))}: none is marked as paused" if tags else "there is none"
        raise NotFound(f"endpoint configs of {name} in {aws.region}: {which}", hint="use `deploy`")
    steps = [plans.create_endpoint(name, config_name)]
    if config:
        registered = account.registered(aws, scaling.target_of(config))
        steps += scaling.steps(config, registered) + schedules.steps(config, registered)
    return steps


def _copies(config: Config | None, model: str, least: Mapping[str, int]) -> int:
    copies = config.component.copies if config and config.component else 1
    return max(1, copies, least.get(f"inference-component/{model}", 0))


def _apply(aws: Aws, planned: Plan, yes: bool, poll_s: float) -> None:
    print_plan(planned)
    if not yes:
        click.confirm("Go ahead?", abort=True, err=True)
    Executor(aws, Progress(), poll_s).apply(planned)
