"""Plans the pause of a deployment and its end. Pure.

A pause scales components and asynchronous endpoints to zero copies or instances. A real-time
endpoint cannot go to zero, so a pause deletes it, and the end of the pause creates it from its
endpoint config. Endpoint configs, models and archives stay.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from sagemaker_deploy.plan import changes, waits
from sagemaker_deploy.plan.capacity.scaling import SERVICE
from sagemaker_deploy.plan.requests import own_tag
from sagemaker_deploy.plan.steps import Step, Undo
from sagemaker_deploy.plan.variants import VARIANT

Where = Mapping[str, str]  # names a scalable target
# A tag of an endpoint config: when a pause deleted its endpoint.
PAUSED = "sagemaker-deploy:paused"
SUSPENSIONS = (
    "DynamicScalingInSuspended",
    "DynamicScalingOutSuspended",
    "ScheduledScalingSuspended",
)


def pause_components(names: Iterable[str], targets: Iterable[Where]) -> list[Step]:
    """Plan the suspension of scaling, then zero copies of each component."""
    return [*suspend(targets), *(changes.copies(name, 0) for name in names)]


def resume_components(copies: Mapping[str, int], targets: Iterable[Where]) -> list[Step]:
    """Plan each component's copies, then the end of the suspension."""
    scaled = [changes.copies(name, count) for name, count in copies.items()]
    return scaled + end_suspension(targets)


def pause_instances(endpoint: str, targets: Iterable[Where]) -> list[Step]:
    """Plan the suspension of scaling, then zero instances; the queue keeps its requests."""
    return [*suspend(targets), changes.instances(endpoint, 0)]


def resume_instances(endpoint: str, count: int, targets: Iterable[Where]) -> list[Step]:
    """Plan an asynchronous endpoint's instances, then the end of the suspension."""
    return [changes.instances(endpoint, count), *end_suspension(targets)]


def suspend(targets: Iterable[Where]) -> list[Step]:
    """Plan the suspension of the targets' scaling. Limits and policies stay."""
    return [_suspension(where, is_suspended=True) for where in targets]


def end_suspension(targets: Iterable[Where]) -> list[Step]:
    """Plan the end of the suspension."""
    return [_suspension(where, is_suspended=False) for where in targets]


def _suspension(where: Where, *, is_suspended: bool) -> Step:
    state = dict.fromkeys(SUSPENSIONS, is_suspended)
    before = dict.fromkeys(SUSPENSIONS, not is_suspended)
    return Step(
        "suspend its scaling" if is_suspended else "let it scale again",
        f"scalable target {where['ResourceId']}",
        SERVICE,
        "register_scalable_target",
        {**where, "SuspendedState": state},
        undo=Undo("register_scalable_target", {**where, "SuspendedState": before}),
    )


def remember(endpoint: str, config_name: str, arn: str, when: str) -> Step:
    """Plan the tag by which `resume` finds the endpoint config; `when` is a time in ISO format."""
    tags = [own_tag(endpoint), {"Key": PAUSED, "Value": when}]
    return Step(
        "remember that it served",
        f"endpoint config {config_name}",
        "sagemaker",
        "add_tags",
        {"ResourceArn": arn, "Tags": tags},
    )


def paused_config(tags: Mapping[str, Mapping[str, str]]) -> str | None:
    """Return the endpoint config of the last pause; `tags` has each config's tags by its name.

    If no config has the tag of a pause, return the only config, or None if there are several.
    """
    paused = {name: own[PAUSED] for name, own in tags.items() if PAUSED in own}
    if paused:
        return max(paused, key=paused.__getitem__)
    return next(iter(tags)) if len(tags) == 1 else None


def delete_endpoint(endpoint: str) -> Step:
    """Plan the deletion of a real-time endpoint and nothing else."""
    return Step(
        "delete the endpoint; its config, models and archives stay",
        f"endpoint {endpoint}",
        "sagemaker",
        "delete_endpoint",
        {"EndpointName": endpoint},
        wait=waits.endpoint_deleted(endpoint),
    )


def create_endpoint(endpoint: str, config_name: str) -> Step:
    """Plan a real-time endpoint from an existing endpoint config."""
    where = {"EndpointName": endpoint}
    return Step(
        f"make the endpoint again from {config_name}",
        f"endpoint {endpoint}",
        "sagemaker",
        "create_endpoint",
        where | {"EndpointConfigName": config_name, "Tags": [own_tag(endpoint)]},
        undo=Undo("delete_endpoint", where),
        wait=waits.endpoint_in_service(endpoint, waits.START_TIMEOUT_S),
    )


def idle_instances(endpoint: Mapping[str, Any]) -> int:
    """Return the instances that a described endpoint of components keeps at zero copies."""
    counts = [
        int(each["ManagedInstanceScaling"].get("MinInstanceCount", 1))
        if "ManagedInstanceScaling" in each
        else int(each.get("DesiredInstanceCount", 1))
        for each in endpoint.get("ProductionVariants", [])
        if each.get("VariantName") == VARIANT
    ]
    return sum(counts)
