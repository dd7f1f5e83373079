"""Builds an endpoint config's variants: the deployment's own, others beside it, a shadow. Pure."""

from collections.abc import Mapping
from typing import Any

from sagemaker_deploy.config import Config
from sagemaker_deploy.sections import Changes, Component

VARIANT, SHADOW = "AllTraffic", "shadow"
PREFIX_LENGTH = 4096
ROUTING = {
    "least_outstanding": "LEAST_OUTSTANDING_REQUESTS",
    "random": "RANDOM",
    "prefix_aware": "PREFIX_AWARE",
}
# CUDA of the image -> host image, newest first (sources differ only in minor versions).
AMIS = (
    ((13, 0), "al2023-ami-sagemaker-inference-gpu-4-1"),
    ((12, 4), "al2-ami-sagemaker-inference-gpu-3-1"),
    ((11, 0), "al2-ami-sagemaker-inference-gpu-2-1"),
)

Json = dict[str, Any]


def production(config: Config, model_name: str) -> Json:
    """Build the deployment's own variant."""
    variant = _variant(config, VARIANT, model_name)
    if config.variants:
        variant["InitialVariantWeight"] = config.weight
    return variant


def others(config: Config, models: Mapping[str, str]) -> list[Json]:
    """Build the variants beside it, which get their share of the traffic."""
    return [
        _variant(with_changes(config, each), name, models[name])
        | {"InitialVariantWeight": each.weight}
        for name, each in config.variants.items()
    ]


def shadow(config: Config, models: Mapping[str, str]) -> list[Json]:
    """Build the shadow, which gets a share of the requests too, and whose answers are dropped."""
    if config.shadow is None:
        return []
    variant = _variant(with_changes(config, config.shadow), SHADOW, models[SHADOW])
    return [variant | {"InitialVariantWeight": config.shadow.percent / 100}]


def all_changes(config: Config) -> dict[str, Changes]:
    """Return every variant beside the deployment's own, the shadow among them, by name."""
    return {**config.variants, **({SHADOW: config.shadow} if config.shadow else {})}


def are_others(config: Config, known: frozenset[str]) -> bool:
    """Whether an update changes the variants' names, which SageMaker does at once, unguarded."""
    return bool(known) and known != {VARIANT, *config.variants}


def with_changes(config: Config, changes: Changes) -> Config:
    """Return the configuration of a variant that is not the deployment's own."""
    fields: Json = {
        "image": changes.image,
        "model": changes.model,
        "instance_type": changes.instance_type,
        "instance_count": changes.instance_count,
    }
    if changes.instance_type:
        fields["instance_types"] = ()
    known = {key: value for key, value in fields.items() if value is not None}
    return config.model_copy(update={**known, "env": {**config.env, **changes.env}})


def _variant(config: Config, name: str, model_name: str) -> Json:
    variant: Json = {"VariantName": name}
    if not config.component:
        variant["ModelName"] = model_name
    if config.serverless:
        return variant | {"ServerlessConfig": _serverless(config)}
    variant |= _instances(config)
    if not config.component:
        variant["ContainerStartupHealthCheckTimeoutInSeconds"] = config.health_check_timeout_s
        variant["ModelDataDownloadTimeoutInSeconds"] = config.download_timeout_s
    if config.volume_gb:
        variant["VolumeSizeInGB"] = config.volume_gb
    routing: Json = {"RoutingStrategy": ROUTING[config.routing]}
    if config.routing == "prefix_aware":
        routing["PrefixAwareRoutingConfig"] = {"PrefixLength": PREFIX_LENGTH}
    variant["RoutingConfig"] = routing
    if host_image := ami(config):
        variant["InferenceAmiVersion"] = host_image
    return variant


def _instances(config: Config) -> Json:
    count: Json = {"InitialInstanceCount": config.instance_count}
    if config.instance_types:
        pools = [
            {"InstanceType": name, "Priority": priority}
            for priority, name in enumerate(config.instance_types, 1)
        ]
        count["InstancePools"] = pools
    else:
        count["InstanceType"] = config.instance_type
    if config.component:
        count["ManagedInstanceScaling"] = _managed_scaling(config, config.component)
    return count


def _managed_scaling(config: Config, component: Component) -> Json:
    least = config.scaling.least if config.scaling else config.instance_count
    content: Json = {
        "Status": "ENABLED",
        "MinInstanceCount": min(least, config.instance_count),
        "MaxInstanceCount": max(
            config.scaling.most if config.scaling else 0, config.instance_count
        ),
    }
    if policy := component.scale_in:
        content["MinInstanceCount"] = 0  # instances without copies go
        limits = {"MaximumStepSize": policy.max_step, "CooldownInMinutes": policy.cooldown_minutes}
        content["ScaleInPolicy"] = {"Strategy": policy.strategy.upper()} | {
            key: value for key, value in limits.items() if value is not None
        }
    return content


def _serverless(config: Config) -> Json:
    settings = config.serverless
    assert settings is not None
    content: Json = {
        "MemorySizeInMB": settings.memory_mb,
        "MaxConcurrency": settings.max_concurrency,
    }
    if settings.provisioned_concurrency:
        content["ProvisionedConcurrency"] = settings.provisioned_concurrency
    return content


def ami(config: Config) -> str | None:
    """Return the host image that matches the image's CUDA version, if it is known."""
    if config.ami or not config.cuda or not config.has_gpus:
        return config.ami
    major, minor = (int(part) for part in config.cuda.split("."))
    return next((name for least, name in AMIS if (major, minor) >= least), None)
