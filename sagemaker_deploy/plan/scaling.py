"""Application Auto Scaling as steps: target tracking, and the way out of zero.

The metrics are SageMaker's high-resolution counts of concurrent requests: queued and running ones,
a stream until its last token. From zero copies there is nothing to count, so an alarm on failed
invocations takes the first step.
"""

from typing import Any

from sagemaker_deploy.config import Config, Scaling
from sagemaker_deploy.plan.requests import VARIANT, component_name
from sagemaker_deploy.plan.steps import Step, Undo

VARIANT_METRIC = "SageMakerVariantConcurrentRequestsPerModelHighResolution"
COMPONENT_METRIC = "SageMakerInferenceComponentConcurrentRequestsPerCopyHighResolution"
SERVICE = "application-autoscaling"


def target(config: Config) -> dict[str, str]:
    """What is scaled: the variant's instances or the component's copies."""
    if config.component:
        resource = f"inference-component/{component_name(config)}"
        dimension = "sagemaker:inference-component:DesiredCopyCount"
    else:
        resource = f"endpoint/{config.name}/variant/{VARIANT}"
        dimension = "sagemaker:variant:DesiredInstanceCount"
    return {
        "ServiceNamespace": "sagemaker",
        "ResourceId": resource,
        "ScalableDimension": dimension,
    }


def steps(config: Config) -> list[Step]:
    """Register the target, track it, and wake it when it may sleep."""
    scaling = config.scaling
    if scaling is None:
        return []
    made = [_register(config, scaling), _tracking(config, scaling)]
    if scaling.min == 0:
        made += [_wake_policy(config), _wake_alarm(config)]
    return made


def removal(config_target: dict[str, str]) -> Step:
    """Deregister; its policies go with it."""
    return Step(
        f"stop scaling {config_target['ResourceId']}",
        f"scalable target {config_target['ResourceId']}",
        SERVICE,
        "deregister_scalable_target",
        config_target,
        may_be_missing=True,
    )


def wake_name(name: str) -> str:
    """The name of the policy and alarm that lead out of zero."""
    return f"{name}-wake"


def _register(config: Config, scaling: Scaling) -> Step:
    where = target(config)
    return Step(
        f"let it scale from {scaling.min} to {scaling.max}",
        f"scalable target {where['ResourceId']}",
        SERVICE,
        "register_scalable_target",
        {**where, "MinCapacity": scaling.min, "MaxCapacity": scaling.max},
        undo=Undo("deregister_scalable_target", where),
    )


def _tracking(config: Config, scaling: Scaling) -> Step:
    metric = COMPONENT_METRIC if config.component else VARIANT_METRIC
    policy: dict[str, Any] = {
        "TargetValue": scaling.target_concurrency,
        "ScaleInCooldown": scaling.scale_in_cooldown_s,
        "ScaleOutCooldown": scaling.scale_out_cooldown_s,
        "PredefinedMetricSpecification": {"PredefinedMetricType": metric},
    }
    if config.asynchronous:
        del policy["PredefinedMetricSpecification"]
        policy["CustomizedMetricSpecification"] = {
            "MetricName": "ApproximateBacklogSizePerInstance",
            "Namespace": "AWS/SageMaker",
            "Dimensions": [{"Name": "EndpointName", "Value": config.name}],
            "Statistic": "Average",
        }
    return Step(
        f"aim at {scaling.target_concurrency:g} concurrent requests for each copy",
        f"scaling policy {config.name}-track",
        SERVICE,
        "put_scaling_policy",
        {
            **target(config),
            "PolicyName": f"{config.name}-track",
            "PolicyType": "TargetTrackingScaling",
            "TargetTrackingScalingPolicyConfiguration": policy,
        },
    )


def _wake_policy(config: Config) -> Step:
    return Step(
        "take one copy when the alarm rings at zero",
        f"scaling policy {wake_name(config.name)}",
        SERVICE,
        "put_scaling_policy",
        {
            **target(config),
            "PolicyName": wake_name(config.name),
            "PolicyType": "StepScaling",
            "StepScalingPolicyConfiguration": {
                "AdjustmentType": "ExactCapacity",
                "MetricAggregationType": "Maximum",
                "Cooldown": 60,
                "StepAdjustments": [{"MetricIntervalLowerBound": 0, "ScalingAdjustment": 1}],
            },
        },
    )


def _wake_alarm(config: Config) -> Step:
    if config.component:
        metric, period = "NoCapacityInvocationFailures", 30
        dimension = {"Name": "InferenceComponentName", "Value": component_name(config)}
    else:
        metric, period = "HasBacklogWithoutCapacity", 60
        dimension = {"Name": "EndpointName", "Value": config.name}
    name = wake_name(config.name)
    return Step(
        f"ring when {metric} is at least 1",
        f"alarm {name}",
        "cloudwatch",
        "put_metric_alarm",
        {
            "AlarmName": name,
            # The executor puts the ARN of the policy of that name here.
            "AlarmActions": [f"policy:{name}"],
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
