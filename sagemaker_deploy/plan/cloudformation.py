"""Renders a deployment as a CloudFormation template: the same parameters, with references. Pure.

Property names of AWS::SageMaker::* are those of the API. Secrets become dynamic references, which
CloudFormation resolves when it creates the resource.
"""

from typing import Any

from sagemaker_deploy.config import Config
from sagemaker_deploy.errors import ConfigError
from sagemaker_deploy.plan import checks, requests, scaling
from sagemaker_deploy.plan.steps import Secret, Step

Json = dict[str, Any]
VERSION = "2010-09-09"


def endpoint(config: Config) -> Json:
    """Render the deployment as a template. Raises ConfigError if CloudFormation lacks a feature."""
    if problems := checks.problems(config):
        raise ConfigError(problems)
    data = config.model.data
    if data and not data.startswith("s3://"):
        raise ConfigError(["model.data: a template needs it on S3 (s3://...), not on this machine"])
    if config.model.additional:
        raise ConfigError(["model.additional: AWS::SageMaker::Model has no such property"])
    model = requests.model(config, config.image, data)
    endpoint_config = requests.endpoint_config(config, model["ModelName"])
    resources: Json = {
        "Model": _resource("SageMaker::Model", _resolved(model)),
        "EndpointConfig": _resource("SageMaker::EndpointConfig", _with_model(endpoint_config)),
        "Endpoint": _resource("SageMaker::Endpoint", _endpoint(config)),
    }
    if config.component:
        resources["Component"] = _component(config, model["ModelName"])
    resources |= _scaling(config)
    return {
        "AWSTemplateFormatVersion": VERSION,
        "Description": f"The endpoint {config.name}",
        "Resources": resources,
        "Outputs": {"EndpointName": {"Value": _attribute("Endpoint", "EndpointName")}},
    }


def _endpoint(config: Config) -> Json:
    properties: Json = {
        "EndpointName": config.name,
        "EndpointConfigName": _attribute("EndpointConfig", "EndpointConfigName"),
        "Tags": requests.tags(config),
    }
    if not config.serverless:
        properties["DeploymentConfig"] = requests.deployment_config(config)
    return properties


def _with_model(params: Json) -> Json:
    variants = [
        variant
        | ({"ModelName": _attribute("Model", "ModelName")} if "ModelName" in variant else {})
        for variant in params["ProductionVariants"]
    ]
    return params | {"ProductionVariants": variants}


def _component(config: Config, model_name: str) -> Json:
    params = requests.component(config, model_name)
    specification = params["Specification"] | {"ModelName": _attribute("Model", "ModelName")}
    params |= {
        "EndpointName": _attribute("Endpoint", "EndpointName"),
        "Specification": specification,
    }
    return _resource("SageMaker::InferenceComponent", params)


def _scaling(config: Config) -> Json:
    """Render the scaling steps as resources; the alarm refers to the policy that it triggers."""
    resources: Json = {}
    scaled = "Component" if config.component else "Endpoint"
    for step in scaling.steps(config):
        name = _scaling_name(step)
        params = dict(step.params)
        if step.operation == "register_scalable_target":
            resource = _resource("ApplicationAutoScaling::ScalableTarget", params)
        elif step.operation == "put_scaling_policy":
            for key in ("ServiceNamespace", "ResourceId", "ScalableDimension"):
                del params[key]
            params["ScalingTargetId"] = {"Ref": "ScalableTarget"}
            resource = _resource("ApplicationAutoScaling::ScalingPolicy", params)
        else:
            params["AlarmActions"] = [{"Ref": "WakePolicy"}]
            resource = _resource("CloudWatch::Alarm", params)
        if step.operation == "register_scalable_target":
            resource["DependsOn"] = scaled
        resources[name] = resource
    return resources


def _scaling_name(step: Step) -> str:
    if step.operation == "register_scalable_target":
        return "ScalableTarget"
    if step.operation == "put_metric_alarm":
        return "WakeAlarm"
    return "TrackPolicy" if step.params["PolicyType"] == "TargetTrackingScaling" else "WakePolicy"


def _resolved(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _resolved(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item) for item in value]
    if isinstance(value, Secret):
        return f"{{{{resolve:secretsmanager:{value.name}}}}}"
    return value


def _resource(kind: str, properties: Json) -> Json:
    return {"Type": f"AWS::{kind}", "Properties": properties}


def _attribute(resource: str, name: str) -> Json:
    return {"Fn::GetAtt": [resource, name]}
