"""Renders a deployment in Terraform's JSON syntax, for the provider hashicorp/aws. Pure.

The provider has the API's fields in snake case; `NAMES` has those that it calls otherwise. Models
and endpoint configs cannot be changed, so a new one is created before the old one is destroyed.
"""

import re
from collections.abc import Mapping
from typing import Any

from sagemaker_deploy.config import Config
from sagemaker_deploy.errors import ConfigError
from sagemaker_deploy.plan import monitoring, requests
from sagemaker_deploy.plan.steps import Params, PolicyArn, Secret, Step
from sagemaker_deploy.templates import resources

Json = dict[str, Any]
PROVIDER = {"source": "hashicorp/aws", "version": ">= 6.25"}
WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
NAMES = {
    "ModelName": "name",
    "EndpointConfigName": "name",
    "EndpointName": "name",
    "PolicyName": "name",
    "ScheduledActionName": "name",
    "KmsKeyId": "kms_key_arn",
    "AdditionalModelDataSources": "additional_model_data_source",
    "StepAdjustments": "step_adjustment",
    "OKActions": "ok_actions",
}
# They map names to values of their own, which are not fields.
MAPS = {"Environment", "Tags"}
RESOURCES = {
    "register_scalable_target": "aws_appautoscaling_target",
    "put_scaling_policy": "aws_appautoscaling_policy",
    "put_scheduled_action": "aws_appautoscaling_scheduled_action",
    "put_metric_alarm": "aws_cloudwatch_metric_alarm",
    "put_dashboard": "aws_cloudwatch_dashboard",
}
VARIANTS = {"ProductionVariants", "ShadowProductionVariants"}
IMMUTABLE = {"lifecycle": {"create_before_destroy": True}}


def document(config: Config) -> Json:
    """Render the deployment. Raises ConfigError if the provider lacks a feature."""
    data = resources.checked_data(config)
    if problems := _problems(config):
        raise ConfigError(problems)
    models = resources.models(config, data)
    rendered: dict[str, Json] = {
        "aws_sagemaker_model": {
            _label(variant): _fields(params) | IMMUTABLE for variant, params in models.items()
        },
        "aws_sagemaker_endpoint_configuration": {
            "endpoint": _endpoint_config(resources.endpoint_config(config, models))
        },
        "aws_sagemaker_endpoint": {"endpoint": _endpoint(config)},
    }
    for step in resources.around(config):
        rendered.setdefault(RESOURCES[step.operation], {})[_step_label(config, step)] = _step(step)
    whole: Json = {
        "terraform": {"required_providers": {"aws": PROVIDER}},
        "resource": rendered,
        "output": {"endpoint_name": {"value": "${aws_sagemaker_endpoint.endpoint.name}"}},
    }
    if config.region:
        whole["provider"] = {"aws": {"region": config.region}}
    if secrets := _secrets(config):
        whole["data"] = {"aws_secretsmanager_secret_version": secrets}
    return whole


def _problems(config: Config) -> list[str]:
    """Name what the provider has no attribute for."""
    version = PROVIDER["version"].removeprefix(">= ")
    missing = {
        "component": config.component is not None,
        "instance_types": bool(config.instance_types),
        "routing: prefix_aware": config.routing == "prefix_aware",
        "metrics": bool(config.metrics and config.metrics.are_sagemakers),
    }
    problems = [
        f"{key}: Terraform's provider hashicorp/aws {version} has no such attribute; use "
        "CloudFormation (`template`), or leave it out"
        for key, is_set in missing.items()
        if is_set
    ]
    if config.kms_key and not config.kms_key.startswith("arn:"):
        problems.append(f"kms_key: Terraform needs the key's ARN, not {config.kms_key}")
    return problems


def _endpoint_config(params: Params) -> Json:
    rendered = _fields({key: value for key, value in params.items() if key not in VARIANTS})
    for key in VARIANTS & params.keys():
        rendered[_snake(key)] = [_variant(variant) for variant in params[key]]
    return rendered | IMMUTABLE


def _variant(variant: Mapping[str, Any]) -> Json:
    label = _label(variant["VariantName"])
    others = {key: value for key, value in variant.items() if key != "ModelName"}
    return {**_fields(others), "model_name": f"${{aws_sagemaker_model.{label}.name}}"}


def _endpoint(config: Config) -> Json:
    name = "${aws_sagemaker_endpoint_configuration.endpoint.name}"
    rendered = _fields({"EndpointName": config.name, "Tags": requests.tags(config)})
    rendered["endpoint_config_name"] = name
    if not config.serverless:
        alarms = monitoring.rollback_alarms(config)
        rendered["deployment_config"] = _fields(requests.deployment_config(config, alarms))
        if own := set(alarms) & set(monitoring.alarm_names(config)):
            labels = sorted(name.removeprefix(f"{config.name}-") for name in own)
            rendered["depends_on"] = [f"aws_cloudwatch_metric_alarm.{label}" for label in labels]
    return rendered


def _step(step: Step) -> Json:
    if step.operation == "put_dashboard":
        params = {key: _escaped(str(value)) for key, value in step.params.items()}
        return {_snake(key): value for key, value in params.items()}
    rendered = _fields(step.params)
    if step.operation == "put_metric_alarm":
        rendered["dimensions"] = {each["Name"]: each["Value"] for each in step.params["Dimensions"]}
    if step.operation == "register_scalable_target":
        rendered["depends_on"] = ["aws_sagemaker_endpoint.endpoint"]
    elif "ResourceId" in step.params:
        rendered["depends_on"] = ["aws_appautoscaling_target.endpoint"]
    return rendered


def _step_label(config: Config, step: Step) -> str:
    for key in ("PolicyName", "ScheduledActionName", "AlarmName"):
        if key in step.params:
            return _label(str(step.params[key]).removeprefix(f"{config.name}-"))
    return "endpoint"


def _fields(params: Mapping[str, Any]) -> Json:
    """Rename every field; tags become a map."""
    rendered: Json = {}
    for key, value in params.items():
        if key == "Tags":
            rendered["tags"] = {tag["Key"]: _escaped(tag["Value"]) for tag in value}
        elif key in MAPS:
            rendered[_snake(key)] = {name: _value(text) for name, text in value.items()}
        else:
            rendered[NAMES.get(key, _snake(key))] = _value(value)
    return rendered


def _value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _fields(value)
    if isinstance(value, list | tuple):
        return [_value(item) for item in value]
    if isinstance(value, Secret):
        label = _secret_label(value.name)
        return f"${{data.aws_secretsmanager_secret_version.{label}.secret_string}}"
    if isinstance(value, PolicyArn):
        return "${aws_appautoscaling_policy.wake.arn}"
    return _escaped(value) if isinstance(value, str) else value


def _secrets(config: Config) -> Json:
    return {_secret_label(name): {"secret_id": name} for name in config.secrets.values()}


def _secret_label(name: str) -> str:
    return _label(name.rpartition(":")[2])


def _label(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def _snake(name: str) -> str:
    return WORD.sub("_", name).lower()


def _escaped(text: str) -> str:
    """Keep Terraform from reading a text as a template."""
    return text.replace("${", "$${").replace("%{", "%%{")
