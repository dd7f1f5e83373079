"""Plans the pause of a deployment, in which nothing runs, and its end. Pure.

Components and asynchronous endpoints go to zero copies or instances. A real-time endpoint cannot:
it is deleted, and made again from its endpoint config, which stays, as do models and archives.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from sagemaker_deploy.plan import changes, waits
from sagemaker_deploy.plan.capacity import schedules
from sagemaker_deploy.plan.requests import TAG
from sagemaker_deploy.plan.steps import Step, Undo
from sagemaker_deploy.plan.variants import VARIANT

Described = Mapping[str, Any]
Where = Mapping[str, str]  # names a scalable target
PAUSED = "sagemaker-deploy:paused"  # a tag: when the endpoint of this config was deleted


def pause_components(names: Iterable[str], targets: Iterable[Where]) -> list[Step]:
    """Plan zero copies of each component, and no scaling that would bring them back."""
    suspensions = [schedules.suspension(where, is_suspended=True) for where in targets]
    return suspensions + [changes.copies(name, 0) for name in names]


def resume_components(copies: Mapping[str, int], targets: Iterable[Where]) -> list[Step]:
    """Plan the components' copies, then scaling as it was."""
    steps = [changes.copies(name, count) for name, count in copies.items()]
    return steps + [schedules.suspension(where, is_suspended=False) for where in targets]


def pause_instances(endpoint: str, targets: Iterable[Where]) -> list[Step]:
    """Plan zero instances of an asynchronous endpoint, whose queue waits meanwhile."""
    suspensions = [schedules.suspension(where, is_suspended=True) for where in targets]
    return [*suspensions, changes.instances(endpoint, 0)]


def resume_instances(endpoint: str, count: int, targets: Iterable[Where]) -> list[Step]:
    """Plan an asynchronous endpoint's instances, then scaling as it was."""
    scaling = [schedules.suspension(where, is_suspended=False) for where in targets]
    return [changes.instances(endpoint, count), *scaling]


def remember(endpoint: str, config_name: str, arn: str, when: str) -> Step:
    """Plan the tag by which `resume` finds the config that served; `when` is in ISO format."""
    tags = [{"Key": TAG, "Value": endpoint}, {"Key": PAUSED, "Value": when}]
    return Step(
        "remember that it served",
        f"endpoint config {config_name}",
        "sagemaker",
        "add_tags",
        {"ResourceArn": arn, "Tags": tags},
    )


def paused_config(tags: Mapping[str, Mapping[str, str]]) -> str | None:
    """Return the endpoint config that a pause left last; `tags` has those of each, by its name.

    Without the tag of a pause it is the only config. None if there is none, or several.
    """
    paused = {name: own[PAUSED] for name, own in tags.items() if PAUSED in own}
    if paused:
        return max(paused, key=paused.__getitem__)
    return next(iter(tags)) if len(tags) == 1 else None


def delete_endpoint(endpoint: str) -> Step:
    """Plan the deletion of a real-time endpoint alone."""
    return Step(
        "delete the endpoint; its config, models and archives stay",
        f"endpoint {endpoint}",
        "sagemaker",
        "delete_endpoint",
        {"EndpointName": endpoint},
        wait=waits.endpoint_deleted(endpoint),
    )


def create_endpoint(endpoint: str, config_name: str) -> Step:
    """Plan a real-time endpoint from the config that it had."""
    where = {"EndpointName": endpoint}
    return Step(
        f"make the endpoint again from {config_name}",
        f"endpoint {endpoint}",
        "sagemaker",
        "create_endpoint",
        where | {"EndpointConfigName": config_name, "Tags": [{"Key": TAG, "Value": endpoint}]},
        undo=Undo("delete_endpoint", where),
        wait=waits.endpoint_in_service(endpoint, waits.START_TIMEOUT_S),
    )


def idle_instances(described: Described) -> int:
    """Return how many instances an endpoint of components keeps when none has a copy."""
    counts = [
        int(each["ManagedInstanceScaling"].get("MinInstanceCount", 1))
        if "ManagedInstanceScaling" in each
        else int(each.get("DesiredInstanceCount", 1))
        for each in described.get("ProductionVariants", [])
        if each.get("VariantName") == VARIANT
    ]
    return sum(counts)
