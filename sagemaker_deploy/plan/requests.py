"""Builds the parameters of SageMaker's Create calls from a configuration. Pure.

A model and an endpoint config are immutable on the service, so their names end in a hash of their
content: the same configuration yields the same names, a changed one new names.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sagemaker_deploy.config import Config
from sagemaker_deploy.plan import instances, variants
from sagemaker_deploy.plan.steps import Secret

TAG = "sagemaker-deploy"
# Log groups of CloudWatch; a component's and an endpoint's end in its name.
ENDPOINT_LOGS = "/aws/sagemaker/Endpoints/"
COMPONENT_LOGS = "/aws/sagemaker/InferenceComponents/"
JOB_LOGS = "/aws/sagemaker/TransformJobs"
# SageMaker cuts a whole answer at 60 s and a stream at 8 minutes, and the whole one is lost. The
# container ends its answer a little earlier and returns the text so far.
DEADLINES = {"REQUEST_DEADLINE": "55", "REQUEST_DEADLINE_STREAMED": "475"}

# Where CloudWatch puts the metrics that the container's log lines carry.
TOKEN_NAMESPACE = "LLM"

Json = dict[str, Any]
NONE: Mapping[str, str] = {}


def own_tag(deployment: str) -> dict[str, str]:
    """Return the tag that marks a deployment's resources."""
    return {"Key": TAG, "Value": deployment}


def tags(config: Config) -> list[dict[str, str]]:
    """Return the tags of all of the deployment's resources."""
    return [
        {"Key": key, "Value": value} for key, value in {**config.tags, TAG: config.name}.items()
    ]


def hashed(name: str, content: Mapping[str, Any]) -> str:
    """Name an immutable resource by a hash of its parameters."""
    text = json.dumps(content, sort_keys=True)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def environment(config: Config) -> dict[str, str]:
    """Return the container's variables; secrets are placeholders until the plan is applied.

    All but asynchronous endpoints, which wait for up to an hour, get deadlines.
    """
    variables = dict(config.env) if config.asynchronous else DEADLINES | config.env
    if config.model.id:
        variables.setdefault("HF_MODEL_ID", config.model.id)
    if config.metrics and config.metrics.tokens:
        variables.setdefault("EMF_NAMESPACE", TOKEN_NAMESPACE)
        variables.setdefault("EMF_DIMENSIONS", f"EndpointName={config.name}")
    for name, secret in config.secrets.items():
        variables[name] = Secret(secret)
    return variables


def model(config: Config, image: str, data_url: str | None) -> Json:
    """Build the parameters of CreateModel."""
    container: Json = {"Image": image, "Environment": environment(config)}
    container |= model_source(config, data_url)
    if config.multi_model:
        container["Mode"] = "MultiModel"
    if config.model.additional:
        container["AdditionalModelDataSources"] = [
            {"ChannelName": channel, "S3DataSource": _prefix(url)}
            for channel, url in config.model.additional.items()
        ]
    content: Json = {
        "PrimaryContainer": container,
        "ExecutionRoleArn": config.role,
        "EnableNetworkIsolation": config.network.isolated,
    }
    if config.network.subnets:
        content["VpcConfig"] = _vpc(config)
    return {"ModelName": hashed(config.name, content), **content, "Tags": tags(config)}


def other_models(config: Config) -> dict[str, Json]:
    """Build CreateModel's parameters for the variants beside the deployment's own, by name."""
    models = {}
    for name, changes in variants.all_changes(config).items():
        changed = variants.with_changes(config, changes)
        models[name] = model(changed, changed.image, changed.model.data)
    return models


def model_source(config: Config, data_url: str | None) -> Json:
    """Return the source of the model's files: an archive, a prefix, or nothing (the Hub)."""
    if not data_url:
        return {}
    if config.multi_model or data_url.endswith(".tar.gz"):
        return {"ModelDataUrl": data_url}
    return {"ModelDataSource": {"S3DataSource": _prefix(data_url)}}


def endpoint_config(config: Config, model_name: str, models: Mapping[str, str] = NONE) -> Json:
    """Build the parameters of CreateEndpointConfig; `models` has those of the other variants."""
    content: Json = {
        "ProductionVariants": [
            variants.production(config, model_name),
            *variants.others(config, models),
        ]
    }
    if shadows := variants.shadow(config, models):
        content["ShadowProductionVariants"] = shadows
    if config.component:
        content["ExecutionRoleArn"] = config.role
        if config.network.isolated:
            content["EnableNetworkIsolation"] = True
        if config.network.subnets:
            content["VpcConfig"] = _vpc(config)
    if config.asynchronous:
        content["AsyncInferenceConfig"] = _async(config)
    if config.capture:
        content["DataCaptureConfig"] = {
            "EnableCapture": True,
            "InitialSamplingPercentage": config.capture.percent,
            "DestinationS3Uri": config.capture.destination,
            "CaptureOptions": [{"CaptureMode": "InputAndOutput"}],
            # Bodies of any other type are captured in base64.
            "CaptureContentTypeHeader": {
                "JsonContentTypes": ["application/json", "application/jsonlines"],
                "CsvContentTypes": ["text/csv"],
            },
        }
    if config.kms_key:
        content["KmsKeyId"] = config.kms_key
    metrics = config.metrics
    if metrics and metrics.are_sagemakers:
        content["MetricsConfig"] = {
            "EnableEnhancedMetrics": metrics.enhanced,
            "EnableDetailedObservability": metrics.detailed,
            "MetricPublishFrequencyInSeconds": metrics.every_s,
        }
    name = hashed(config.name, content)
    return {"EndpointConfigName": name, **content, "Tags": tags(config)}


def component(config: Config, model_name: str) -> Json:
    """Build the parameters of CreateInferenceComponent for the deployment's model.

    It reserves `component.gpus`, or else all GPUs of an instance.
    """
    settings = config.component
    assert settings is not None
    compute: Json = {"MinMemoryRequiredInMb": settings.memory_mb}
    instance = instances.find(config.all_instance_types[0])
    if gpus := settings.gpus or (instance.gpus if instance else 0):
        compute["NumberOfAcceleratorDevicesRequired"] = gpus
    if settings.cpus:
        compute["NumberOfCpuCoresRequired"] = settings.cpus
    return {
        "InferenceComponentName": component_name(config),
        "EndpointName": config.name,
        "VariantName": variants.VARIANT,
        "Specification": {
            "ModelName": model_name,
            "StartupParameters": {
                "ModelDataDownloadTimeoutInSeconds": config.download_timeout_s,
                "ContainerStartupHealthCheckTimeoutInSeconds": config.health_check_timeout_s,
            },
            "ComputeResourceRequirements": compute,
            "DataCacheConfig": {"EnableCaching": settings.cache_model_data},
        },
        "RuntimeConfig": {"CopyCount": settings.copies},
        "Tags": tags(config),
    }


def artifact_prefix(name: str) -> str:
    """Return the key prefix of all objects that a deployment uploads to its bucket."""
    return f"sagemaker-deploy/{name}/"


def component_name(config: Config) -> str:
    """Return the name of the deployment's own component."""
    return f"{config.name}-model"


def retained_properties(config: Config) -> Json:
    """Build UpdateEndpoint's fields that keep the count that scaling has reached.

    The weights are the file's if it has variants.
    """
    if not config.scaling:
        return {}
    replaced = ["DataCaptureConfig", *(["DesiredWeight"] if config.variants else [])]
    return {
        "RetainAllVariantProperties": True,
        "ExcludeRetainedVariantProperties": [{"VariantPropertyType": each} for each in replaced],
    }


def deployment_config(config: Config, alarms: tuple[str, ...]) -> Json:
    """Build UpdateEndpoint's DeploymentConfig; `alarms` roll the update back."""
    update = config.update
    size = {"Type": "CAPACITY_PERCENT", "Value": update.step_percent}
    if update.strategy == "rolling":
        content: Json = {
            "RollingUpdatePolicy": {
                "MaximumBatchSize": size,
                "WaitIntervalInSeconds": update.wait_s,
            }
        }
    else:
        traffic: Json = {
            "Type": update.strategy.upper(),
            "WaitIntervalInSeconds": update.wait_s,
        }
        if update.strategy != "all_at_once":
            key = "CanarySize" if update.strategy == "canary" else "LinearStepSize"
            traffic[key] = size
        content = {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": traffic}}
    if alarms:
        names = [{"AlarmName": name} for name in alarms]
        content["AutoRollbackConfiguration"] = {"Alarms": names}
    return content


def _async(config: Config) -> Json:
    settings = config.asynchronous
    assert settings is not None
    output: Json = {"S3OutputPath": settings.output}
    if settings.failures:
        output["S3FailurePath"] = settings.failures
    topics = {"SuccessTopic": settings.success_topic, "ErrorTopic": settings.error_topic}
    if known_topics := {key: value for key, value in topics.items() if value}:
        output["NotificationConfig"] = known_topics
    content: Json = {"OutputConfig": output}
    if settings.max_concurrent_per_instance:
        limit = settings.max_concurrent_per_instance
        content["ClientConfig"] = {"MaxConcurrentInvocationsPerInstance": limit}
    return content


def _vpc(config: Config) -> Json:
    return {
        "Subnets": list(config.network.subnets),
        "SecurityGroupIds": list(config.network.security_groups),
    }


def _prefix(url: str) -> Json:
    # A prefix must end in a slash; otherwise the service takes every key that starts with it.
    uri = url if url.endswith("/") else f"{url}/"
    return {"S3Uri": uri, "S3DataType": "S3Prefix", "CompressionType": "None"}
