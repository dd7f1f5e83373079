"""Plans Application Auto Scaling: target tracking, and scaling out from zero.

The metrics are SageMaker's high-resolution counts of concurrent requests: queued and running ones,
a stream until its last token. From zero copies there is nothing to count, so an alarm on failed
invocations takes the first step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sagemaker_deploy import service_model
from sagemaker_deploy.config import Config
from sagemaker_deploy.plan.requests import component_name, own_tag
from sagemaker_deploy.plan.steps import Params, PolicyArn, Step, Undo
from sagemaker_deploy.plan.variants import VARIANT
from sagemaker_deploy.sections import Scaling

VARIANT_METRIC = "SageMakerVariantConcurrentRequestsPerModelHighResolution"
COMPONENT_METRIC = "SageMakerInferenceComponentConcurrentRequestsPerCopyHighResolution"
SERVICE = "application-autoscaling"
VARIANT_DIMENSION = "sagemaker:variant:DesiredInstanceCount"
COMPONENT_DIMENSION = "sagemaker:inference-component:DesiredCopyCount"


@dataclass(frozen=True, slots=True)
class Registered:
    """The account's scaling of one target, as the services describe it."""

    target: Params | None = None
    policies: Mapping[str, Params] = field(default_factory=dict)  # by name
    alarm: Params | None = None
    schedules: Mapping[str, Params] = field(default_factory=dict)  # by name
    is_known: bool = True  # False: a call failed, so any of them may exist


NOTHING = Registered()
# What an undo does not give back: a role would need the right to pass it, and tags stay.
NOT_RESTORED = {"RoleARN", "Tags"}


@dataclass(frozen=True, slots=True)
class Target:
    """The scaled resource: a component's copies, or the instances of the endpoint's variant."""

    endpoint: str
    component: str | None
    is_async: bool

    def where(self) -> dict[str, str]:
        """Return the resource as parameters of Application Auto Scaling."""
        if self.component:
            resource = f"inference-component/{self.component}"
            return where(resource, COMPONENT_DIMENSION)
        resource = f"endpoint/{self.endpoint}/variant/{VARIANT}"
        return where(resource, VARIANT_DIMENSION)


def where(resource: str, dimension: str) -> dict[str, str]:
    """The fields that name a scalable target."""
    return {
        "ServiceNamespace": "sagemaker",
        "ResourceId": resource,
        "ScalableDimension": dimension,
    }


def target_of(config: Config) -> Target:
    """Return the target that a configuration's `scaling` scales."""
    component = component_name(config) if config.component else None
    return Target(config.name, component, config.asynchronous is not None)


def steps(config: Config, registered: Registered = NOTHING) -> list[Step]:
    """Plan a configuration's `scaling`."""
    if config.scaling is None:
        return []
    return steps_for(target_of(config), config.scaling, registered)


def steps_for(target: Target, scaling: Scaling, registered: Registered = NOTHING) -> list[Step]:
    """Plan registration, target tracking and, if the minimum is zero, scaling out from zero.

    A target, policy or alarm that has the same values needs no step. One with other values gets
    these back if a later step fails.
    """
    policy_name = from_zero_name(target.endpoint)
    known_policy = registered.policies.get(policy_name)
    arn = str(known_policy["PolicyARN"]) if known_policy else PolicyArn(policy_name)
    described = [registered.target, registered.policies.get(track_name(target.endpoint))]
    planned = [_register(target, scaling), _tracking(target, scaling)]
    if scaling.least == 0:
        planned += [_from_zero_policy(target), _from_zero_alarm(target, arn)]
        described += [known_policy, registered.alarm]
    changes = [
        change(step, known, is_known=registered.is_known)
        for step, known in zip(planned, described, strict=True)
    ]
    return [step for step in changes if step]


def change(step: Step, known: Params | None, *, is_known: bool = True) -> Step | None:
    """Return the step that brings about a step's values; None if they are there.

    Its undo brings back all that was there before. Of a resource of which nothing is known
    (`is_known` is False) it has none: the step may overwrite what another run created.
    """
    if known is None:
        return step if is_known else replace(step, undo=None)
    params = {key: value for key, value in step.params.items() if key != "Tags"}  # of new ones only
    if all(key in known and _is_same(known[key], value) for key, value in params.items()):
        return None
    return replace(step, params=params, undo=Undo(step.operation, _restorable(step, known)))


def _restorable(step: Step, known: Params) -> Params:
    """Return a described resource as parameters of the operation that puts it."""
    action = service_model.action(step.operation)
    fields = service_model.operation(step.service, action).input_shape.members.keys()
    return {key: known[key] for key in fields - NOT_RESTORED if key in known}


def _is_same(known: Any, expected: Any) -> bool:
    """Compare values to the last key; a key that is off or empty counts as absent."""
    if isinstance(expected, Mapping):
        return (
            isinstance(known, Mapping)
            and all(key in known and _is_same(known[key], expected[key]) for key in expected)
            and all(_is_unset(known[key]) for key in known.keys() - expected.keys())
        )
    if isinstance(expected, list):
        return len(known) == len(expected) and all(map(_is_same, known, expected))
    return bool(known == expected)


def _is_unset(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def removal(target: dict[str, str]) -> Step:
    """Plan the deregistration, which also deletes the policies."""
    return Step(
        f"stop scaling {target['ResourceId']}",
        f"scalable target {target['ResourceId']}",
        SERVICE,
        "deregister_scalable_target",
        target,
        may_be_missing=True,
    )


def track_name(name: str) -> str:
    """Return the name of the policy of target tracking."""
    return f"{name}-track"


def from_zero_name(name: str) -> str:
    """Return the name of the policy and alarm that scale out from zero."""
    return f"{name}-wake"


def _register(target: Target, scaling: Scaling) -> Step:
    its = target.where()
    return Step(
        f"let it scale from {scaling.min} to {scaling.max}",
        f"scalable target {its['ResourceId']}",
        SERVICE,
        "register_scalable_target",
        {**its, "MinCapacity": scaling.min, "MaxCapacity": scaling.max},
        undo=Undo("deregister_scalable_target", its),
    )


def _tracking(target: Target, scaling: Scaling) -> Step:
    metric = COMPONENT_METRIC if target.component else VARIANT_METRIC
    policy: dict[str, Any] = {
        "TargetValue": scaling.target_concurrency,
        "ScaleInCooldown": scaling.scale_in_cooldown_s,
        "ScaleOutCooldown": scaling.scale_out_cooldown_s,
        "PredefinedMetricSpecification": {"PredefinedMetricType": metric},
    }
    if target.is_async:
        del policy["PredefinedMetricSpecification"]
        policy["CustomizedMetricSpecification"] = {
            "MetricName": "ApproximateBacklogSizePerInstance",
            "Namespace": "AWS/SageMaker",
            "Dimensions": [{"Name": "EndpointName", "Value": target.endpoint}],
            "Statistic": "Average",
        }
    return Step(
        f"aim at {scaling.target_concurrency:g} concurrent requests for each copy",
        f"scaling policy {track_name(target.endpoint)}",
        SERVICE,
        "put_scaling_policy",
        {
            **target.where(),
            "PolicyName": track_name(target.endpoint),
            "PolicyType": "TargetTrackingScaling",
            "TargetTrackingScalingPolicyConfiguration": policy,
        },
        undo=_policy_undo(target, track_name(target.endpoint)),
    )


def _from_zero_policy(target: Target) -> Step:
    return Step(
        "take one copy when the alarm rings at zero",
        f"scaling policy {from_zero_name(target.endpoint)}",
        SERVICE,
        "put_scaling_policy",
        {
            **target.where(),
            "PolicyName": from_zero_name(target.endpoint),
            "PolicyType": "StepScaling",
            "StepScalingPolicyConfiguration": {
                "AdjustmentType": "ExactCapacity",
                "MetricAggregationType": "Maximum",
                "Cooldown": 60,
                "StepAdjustments": [{"MetricIntervalLowerBound": 0, "ScalingAdjustment": 1}],
            },
        },
        undo=_policy_undo(target, from_zero_name(target.endpoint)),
    )


def _policy_undo(target: Target, name: str) -> Undo:
    return Undo("delete_scaling_policy", {**target.where(), "PolicyName": name})


def _from_zero_alarm(target: Target, policy: str) -> Step:
    if target.component:
        metric, period = "NoCapacityInvocationFailures", 30
        dimension = {"Name": "InferenceComponentName", "Value": target.component}
    else:
        metric, period = "HasBacklogWithoutCapacity", 60
        dimension = {"Name": "EndpointName", "Value": target.endpoint}
    name = from_zero_name(target.endpoint)
    return Step(
        f"ring when {metric} is at least 1",
        f"alarm {name}",
        "cloudwatch",
        "put_metric_alarm",
        {
            "AlarmName": name,
            "AlarmActions": [policy],
            "MetricName": metric,
            "Namespace": "AWS/SageMaker",
            "Statistic": "Maximum",
            "Dimensions": [dimension],
            "Period": period,
            "EvaluationPeriods": 1,
            "DatapointsToAlarm": 1,
            "Threshold": 1.0,
            "ComparisonOperator": "GreaterThanOrEqualToThreshold",
            "TreatMissingData": "missing",
            "Tags": [own_tag(target.endpoint)],
        },
        undo=Undo("delete_alarms", {"AlarmNames": [name]}),
    )
