"""Plans the deletion of a deployment: steps for each of its existing resources. Pure."""

from dataclasses import dataclass

from sagemaker_deploy.plan import waits
from sagemaker_deploy.plan.capacity import scaling
from sagemaker_deploy.plan.steps import Params, Plan, Step, Wait


@dataclass(frozen=True, slots=True)
class Deployed:
    """A deployment's resources on the account, by its name and tag."""

    name: str
    endpoint: bool = False
    components: tuple[str, ...] = ()
    configs: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    targets: tuple[tuple[str, str], ...] = ()  # resource id, dimension
    alarms: tuple[str, ...] = ()
    dashboards: tuple[str, ...] = ()
    objects: tuple[tuple[str, str], ...] = ()  # bucket, key


def plan(deployed: Deployed) -> Plan:
    """Plan the deletion in order of reference: a resource goes before those it refers to."""
    steps = [scaling.removal(scaling.where(*target)) for target in deployed.targets]
    if deployed.alarms:
        names = ", ".join(deployed.alarms)
        params = {"AlarmNames": list(deployed.alarms)}
        steps.append(_step("cloudwatch", "delete_alarms", "alarms", names, params))
    if deployed.dashboards:
        names = ", ".join(deployed.dashboards)
        params = {"DashboardNames": list(deployed.dashboards)}
        steps.append(_step("cloudwatch", "delete_dashboards", "dashboard", names, params))
    steps += [_component(name) for name in deployed.components]
    if deployed.endpoint:
        where = {"EndpointName": deployed.name}
        is_deleted = waits.endpoint_deleted(deployed.name)
        steps.append(
            _step("sagemaker", "delete_endpoint", "endpoint", deployed.name, where, is_deleted)
        )
    for name in deployed.configs:
        where = {"EndpointConfigName": name}
        steps.append(_step("sagemaker", "delete_endpoint_config", "endpoint config", name, where))
    for name in deployed.models:
        steps.append(_step("sagemaker", "delete_model", "model", name, {"ModelName": name}))
    for bucket, key in deployed.objects:
        where = {"Bucket": bucket, "Key": key}
        steps.append(_step("s3", "delete_object", "object", f"s3://{bucket}/{key}", where))
    return Plan(deployed.name, tuple(steps))


def _component(name: str) -> Step:
    where = {"InferenceComponentName": name}
    is_deleted = waits.component_deleted(name)
    kind = "inference component"
    return _step("sagemaker", "delete_inference_component", kind, name, where, is_deleted)


def _step(
    service: str,
    operation: str,
    kind: str,
    name: str,
    params: Params,
    wait: Wait | None = None,
) -> Step:
    title = f"delete the {kind}"
    return Step(title, f"{kind} {name}", service, operation, params, wait=wait, may_be_missing=True)
