"""Renders a deployment as a CloudFormation template: the same parameters, with references. Pure.

Property names of AWS::SageMaker::* are those of the API. Secrets become dynamic references, which
CloudFormation resolves when it creates the resource.
"""

from collections.abc import Mapping
from typing import Any

from sagemaker_deploy.config import Config
from sagemaker_deploy.errors import ConfigError
from sagemaker_deploy.plan import monitoring, requests, variants
from sagemaker_deploy.plan.steps import Params, Secret, Step
from sagemaker_deploy.templates import resources

Json = dict[str, Any]
VERSION = "2010-09-09"
# Parameters of the scalable target, to which policies refer by its id instead.
TARGET_FIELDS = ("ServiceNamespace", "ResourceId", "ScalableDimension")
MODEL = "Model"


def endpoint(config: Config) -> Json:
    """Render the deployment as a template. Raises ConfigError if CloudFormation lacks a feature."""
    data = resources.checked_data(config)
    if config.model.additional:
        raise ConfigError(["model.additional: AWS::SageMaker::Model has no such property"])
    models = resources.models(config, data)
    rendered: Json = {
        _model_name(variant): resource("SageMaker::Model", _resolved(params))
        for variant, params in models.items()
    }
    endpoint_config = _with_models(resources.endpoint_config(config, models))
    rendered["EndpointConfig"] = resource("SageMaker::EndpointConfig", endpoint_config)
    rendered["Endpoint"] = resource("SageMaker::Endpoint", _endpoint(config))
    if alarms := _own_rollback_alarms(config):
        rendered["Endpoint"]["DependsOn"] = alarms
    if config.component:
        rendered["Component"] = _component(config, str(models[variants.VARIANT]["ModelName"]))
    rendered |= _around(config)
    return {
        "AWSTemplateFormatVersion": VERSION,
        "Description": f"The endpoint {config.name}",
        "Resources": rendered,
        "Outputs": {"EndpointName": {"Value": attribute("Endpoint", "EndpointName")}},
    }


def _endpoint(config: Config) -> Json:
    properties: Json = {
        "EndpointName": config.name,
        "EndpointConfigName": attribute("EndpointConfig", "EndpointConfigName"),
        "Tags": requests.tags(config),
    }
    if not config.serverless:
        alarms = monitoring.rollback_alarms(config)
        properties["DeploymentConfig"] = requests.deployment_config(config, alarms)
    return properties


def _own_rollback_alarms(config: Config) -> list[str]:
    """Return the template's alarms that the endpoint's updates name, and so have to exist."""
    rollback = set() if config.serverless else set(monitoring.rollback_alarms(config))
    return [
        _alarm_name(config, name) for name in monitoring.alarm_names(config) if name in rollback
    ]


def _model_name(variant: str) -> str:
    return MODEL if variant == variants.VARIANT else MODEL + resources.camel(variant)


def _with_models(params: Params) -> Json:
    """Let the variants refer to their models."""
    changed: Json = dict(params)
    for key in ("ProductionVariants", "ShadowProductionVariants"):
        if key in params:
            changed[key] = [_with_model(variant) for variant in params[key]]
    return changed


def _with_model(variant: Mapping[str, Any]) -> Json:
    if "ModelName" not in variant:
        return dict(variant)
    return {**variant, "ModelName": attribute(_model_name(variant["VariantName"]), "ModelName")}


def _component(config: Config, model_name: str) -> Json:
    params = requests.component(config, model_name)
    specification = params["Specification"] | {"ModelName": attribute(MODEL, "ModelName")}
    params |= {
        "EndpointName": attribute("Endpoint", "EndpointName"),
        "Specification": specification,
    }
    return resource("SageMaker::InferenceComponent", params)


def _around(config: Config) -> Json:
    """Render scaling and monitoring; an alarm refers to the policy that it triggers."""
    rendered: Json = {}
    actions: list[Json] = []
    for step in resources.around(config):
        params: Json = dict(step.params)
        match step.operation:
            case "register_scalable_target":
                target = resource("ApplicationAutoScaling::ScalableTarget", params)
                target["DependsOn"] = "Component" if config.component else "Endpoint"
                rendered["ScalableTarget"] = target
            case "put_scaling_policy":
                params = _without(params, TARGET_FIELDS)
                params["ScalingTargetId"] = {"Ref": "ScalableTarget"}
                policy = resource("ApplicationAutoScaling::ScalingPolicy", params)
                rendered[_policy_name(step)] = policy
            case "put_scheduled_action":
                actions.append(_without(params, TARGET_FIELDS))
            case "put_metric_alarm":
                rendered[_alarm_name(config, params["AlarmName"])] = _alarm(config, step)
            case _:
                rendered["Dashboard"] = resource("CloudWatch::Dashboard", params)
    if actions:
        rendered["ScalableTarget"]["Properties"]["ScheduledActions"] = actions
    return rendered


def _policy_name(step: Step) -> str:
    return "TrackPolicy" if step.params["PolicyType"] == "TargetTrackingScaling" else "WakePolicy"


def _alarm_name(config: Config, name: str) -> str:
    return f"{resources.camel(name.removeprefix(f'{config.name}-'))}Alarm"


def _alarm(config: Config, step: Step) -> Json:
    params: Json = dict(step.params)
    if step.params["AlarmName"] not in monitoring.own_alarm_names(config.name):
        params["AlarmActions"] = [{"Ref": "WakePolicy"}]
    return resource("CloudWatch::Alarm", params)


def _without(params: Mapping[str, Any], names: tuple[str, ...]) -> Json:
    return {key: value for key, value in params.items() if key not in names}


def _resolved(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _resolved(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item) for item in value]
    if isinstance(value, Secret):
        return f"{{{{resolve:secretsmanager:{value.name}}}}}"
    return value


def resource(kind: str, properties: Json) -> Json:
    """Render a resource; `kind` is without AWS::."""
    return {"Type": f"AWS::{kind}", "Properties": properties}


def attribute(label: str, name: str) -> Json:
    """Render a reference to an attribute of the resource with a label."""
    return {"Fn::GetAtt": [label, name]}
