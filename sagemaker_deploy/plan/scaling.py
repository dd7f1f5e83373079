"""Plans Application Auto Scaling: target tracking, and scaling out from zero.

The metrics are SageMaker's high-resolution counts of concurrent requests: queued and running ones,
a stream until its last token. From zero copies there is nothing to count, so an alarm on failed
invocations takes the first step.
"""

from dataclasses import dataclass
from typing import Any

from sagemaker_deploy.config import Config, Scaling
from sagemaker_deploy.plan.requests import VARIANT, component_name
from sagemaker_deploy.plan.steps import PolicyArn, Step, Undo

VARIANT_METRIC = "SageMakerVariantConcurrentRequestsPerModelHighResolution"
COMPONENT_METRIC = "SageMakerInferenceComponentConcurrentRequestsPerCopyHighResolution"
SERVICE = "application-autoscaling"


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
            return where(resource, "sagemaker:inference-component:DesiredCopyCount")
        resource = f"endpoint/{self.endpoint}/variant/{VARIANT}"
        return where(resource, "sagemaker:variant:DesiredInstanceCount")


def where(resource: str, dimension: str) -> dict[str, str]:
    """The fields that name a scalable target."""
    return {
        "ServiceNamespace": "sagemaker",
        "ResourceId": resource,
        "ScalableDimension": dimension,
    }


def steps(config: Config) -> list[Step]:
    """Plan a configuration's `scaling`."""
    if config.scaling is None:
        return []
    component = component_name(config) if config.component else None
    return steps_for(
        config.name, component, config.scaling, is_async=config.asynchronous is not None
    )


def steps_for(
    endpoint: str, component: str | None, scaling: Scaling, *, is_async: bool
) -> list[Step]:
    """Plan registration, target tracking and, if the minimum is zero, scaling out from zero."""
    target = Target(endpoint, component, is_async)
    deployed = [_register(target, scaling), _tracking(target, scaling)]
    if scaling.min == 0:
        deployed += [_wake_policy(target), _wake_alarm(target)]
    return deployed


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


def wake_name(name: str) -> str:
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
        f"scaling policy {target.endpoint}-track",
        SERVICE,
        "put_scaling_policy",
        {
            **target.where(),
            "PolicyName": f"{target.endpoint}-track",
            "PolicyType": "TargetTrackingScaling",
            "TargetTrackingScalingPolicyConfiguration": policy,
        },
    )


def _wake_policy(target: Target) -> Step:
    return Step(
        "take one copy when the alarm rings at zero",
        f"scaling policy {wake_name(target.endpoint)}",
        SERVICE,
        "put_scaling_policy",
        {
            **target.where(),
            "PolicyName": wake_name(target.endpoint),
            "PolicyType": "StepScaling",
            "StepScalingPolicyConfiguration": {
                "AdjustmentType": "ExactCapacity",
                "MetricAggregationType": "Maximum",
                "Cooldown": 60,
                "StepAdjustments": [{"MetricIntervalLowerBound": 0, "ScalingAdjustment": 1}],
            },
        },
    )


def _wake_alarm(target: Target) -> Step:
    if target.component:
        metric, period = "NoCapacityInvocationFailures", 30
        dimension = {"Name": "InferenceComponentName", "Value": target.component}
    else:
        metric, period = "HasBacklogWithoutCapacity", 60
        dimension = {"Name": "EndpointName", "Value": target.endpoint}
    name = wake_name(target.endpoint)
    return Step(
        f"ring when {metric} is at least 1",
        f"alarm {name}",
        "cloudwatch",
        "put_metric_alarm",
        {
            "AlarmName": name,
            # The executor fills in the ARN of the policy of that name.
            "AlarmActions": [PolicyArn(name)],
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
        },
        undo=Undo("delete_alarms", {"AlarmNames": [name]}),
    )
