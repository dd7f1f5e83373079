"""Delete a deployment: steps for everything that it made and that is still there. Pure."""

from dataclasses import dataclass

from sagemaker_deploy.plan import scaling
from sagemaker_deploy.plan.steps import Params, Plan, Step, Wait


@dataclass(frozen=True, slots=True)
class Made:
    """What a deployment has on the account, found by its name and tag."""

    name: str
    endpoint: bool = False
    components: tuple[str, ...] = ()
    configs: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    targets: tuple[tuple[str, str], ...] = ()  # resource id, dimension
    alarms: tuple[str, ...] = ()
    objects: tuple[tuple[str, str], ...] = ()  # bucket, key


def plan(made: Made) -> Plan:
    """From the outermost to the innermost: what others refer to goes last."""
    steps = [scaling.removal(scaling.where(*target)) for target in made.targets]
    if made.alarms:
        names = ", ".join(made.alarms)
        params = {"AlarmNames": list(made.alarms)}
        steps.append(_step("cloudwatch", "delete_alarms", "alarms", names, params))
    steps += [_component(name) for name in made.components]
    if made.endpoint:
        where = {"EndpointName": made.name}
        gone = Wait("describe_endpoint", where, "EndpointStatus", "", ())
        steps.append(_step("sagemaker", "delete_endpoint", "endpoint", made.name, where, gone))
    for name in made.configs:
        where = {"EndpointConfigName": name}
        steps.append(_step("sagemaker", "delete_endpoint_config", "endpoint config", name, where))
    for name in made.models:
        steps.append(_step("sagemaker", "delete_model", "model", name, {"ModelName": name}))
    for bucket, key in made.objects:
        where = {"Bucket": bucket, "Key": key}
        steps.append(_step("s3", "delete_object", "object", f"s3://{bucket}/{key}", where))
    return Plan(made.name, tuple(steps))


def _component(name: str) -> Step:
    where = {"InferenceComponentName": name}
    gone = Wait("describe_inference_component", where, "InferenceComponentStatus", "", ())
    kind = "inference component"
    return _step("sagemaker", "delete_inference_component", kind, name, where, gone)


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
