"""Finds what the service, or the container's start, will certainly refuse. Pure.

Each problem names the key, its value, the limit and the remedy.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sagemaker_deploy import service_model
from sagemaker_deploy.config import Config
from sagemaker_deploy.plan import instances, requests, variants
from sagemaker_deploy.plan.instances import GIB
from sagemaker_deploy.plan.sizing import ModelSize
from sagemaker_deploy.plan.steps import Step, Upload

# Of a serverless endpoint.
SERVERLESS_IMAGE_BYTES = 10 * GIB
SERVERLESS_DISK_BYTES = 5 * 10**9
# Where no volume is asked for and the machine has no disk of its own.
DEFAULT_VOLUME_GB = 30
# Faster than any instance downloads or loads: a longer start cannot end in time.
BEST_HUB_BYTES_S, BEST_S3_BYTES_S, BEST_LOAD_BYTES_S = 1e9, 3e9, 5e9
PLATFORM_VARIABLES = {
    "PORT": "SageMaker calls port 8080, whatever the container listens on; leave it out",
    "SAGEMAKER_BIND_TO_PORT": "SageMaker sets it itself where it is needed; leave it out",
    "HOST": "SageMaker calls the container from outside of it; leave it out",
}
# They let a model run that is larger than the memory of the GPUs.
SMALLER_IN_MEMORY = ("QUANTIZE", "HF_MODEL_QUANTIZE", "MAX_MEMORY")
INDEX_TYPES = re.compile(r"(image\.index|manifest\.list)\.v\d\+json$")


@dataclass(frozen=True, slots=True)
class EcrImage:
    """An image as ECR describes it. None, 0 and an empty set mean unknown."""

    exists: bool | None = None
    media_type: str | None = None
    size_bytes: int = 0
    architectures: frozenset[str] = frozenset()


UNKNOWN_IMAGE = EcrImage()


def problems(config: Config) -> list[str]:
    """Check the configuration as far as possible without the account."""
    return [
        *_instance_types(config),
        *_serverless(config),
        *_multi_model(config),
        *_rolling(config),
        *_variables(config),
    ]


def _rolling(config: Config) -> list[str]:
    if config.update.strategy != "rolling" or not config.variants:
        return []
    return [
        "update.strategy: rolling, which SageMaker refuses for an endpoint of several variants; "
        "take all_at_once, canary or linear, or leave out `variants`"
    ]


def size_problems(config: Config, size: ModelSize) -> list[str]:
    """Find out whether the model fits memory and disk, and can start in time."""
    if not size.weights_bytes:
        return []
    return [*_memory(config, size), *_disk(config, size), *_start(config, size)]


def size_warnings(config: Config, size: ModelSize) -> list[str]:
    """Warn of a model that may not fit the disk that an instance has without volume_gb."""
    if config.volume_gb or config.serverless or size.weights_bytes < DEFAULT_VOLUME_GB * GIB:
        return []
    return [
        f"volume_gb: not set, and {name} may have no more than {DEFAULT_VOLUME_GB} GB for a model "
        f"of {size.weights_bytes / 1e9:.1f} GB; set it to {int(size.weights_bytes / GIB * 2.2) + 1}"
        for name in config.all_instance_types
        if not instances.has_local_disk(name)
    ]


def image_problems(config: Config, image: EcrImage) -> list[str]:
    """Find out whether the service takes an image of ECR and whether it runs on the instances."""
    faults = []
    if image.media_type and INDEX_TYPES.search(image.media_type):
        faults.append(
            f"image: {config.image} is a list of images ({image.media_type}), which SageMaker "
            "refuses; build it with `docker buildx build --platform linux/amd64 --provenance=false`"
        )
    if config.serverless and image.size_bytes > SERVERLESS_IMAGE_BYTES:
        faults.append(
            f"image: {image.size_bytes} bytes; a serverless endpoint takes "
            f"{SERVERLESS_IMAGE_BYTES} at most; take the image for CPUs"
        )
    for name in config.all_instance_types or ("serverless",):
        needed = instances.architecture(name)
        if image.architectures and needed not in image.architectures:
            faults.append(
                f"image: built for {', '.join(sorted(image.architectures))}; {name} runs {needed}; "
                f"build it with --platform linux/{needed}, or take another instance type"
            )
    return faults


def quota_problems(config: Config, quotas: Mapping[str, float]) -> list[str]:
    """Find instance types of which the account may run fewer than the deployment starts with."""
    return [
        f"instance_count: {config.instance_count} of {name}, of which this account may use "
        f"{quotas[name]:g} for endpoints; ask for more at Service Quotas > Amazon SageMaker, or "
        "take another instance type"
        for name in config.all_instance_types
        if quotas.get(name, config.instance_count) < config.instance_count
        and len(config.all_instance_types) == 1
    ]


def quota_warnings(config: Config, quotas: Mapping[str, float]) -> list[str]:
    """Warn of quotas below what scaling, or a blue/green update, may need."""
    most = max(config.instance_count, config.scaling.most if config.scaling else 0)
    if not config.component and config.update.strategy != "rolling":
        most = max(most, 2 * config.instance_count)  # the old instances and the new ones
    return [
        f"quota: this account may use {quotas[name]:g} instances of {name} for endpoints, and "
        f"scaling or an update may need {most}; ask for more at Service Quotas > Amazon SageMaker"
        for name in config.all_instance_types
        if quotas.get(name, most) < most
    ]


def call_problems(steps: list[Step | Upload]) -> list[str]:
    """Check the parameters of every call by botocore's model of the service."""
    faults = []
    for step in steps:
        if isinstance(step, Upload) or step.service != service_model.CONTROL:
            continue
        try:
            action = service_model.action(step.operation)
            service_model.check_input(step.service, action, step.params)
        except service_model.ShapeError as error:
            if "InstanceType" not in str(error):  # checked above, where newer ones are let through
                faults.append(f"{step.resource}: {error}")
    return faults


def _instance_types(config: Config) -> Iterator[str]:
    key = "instance_types" if config.instance_types else "instance_type"
    for name in config.all_instance_types:
        if refusal := instances.refusal(name):
            yield f"{key}: {refusal}"
    for variant, changes in variants.all_changes(config).items():
        if changes.instance_type and (refusal := instances.refusal(changes.instance_type)):
            yield f"{variant}.instance_type: {refusal}"
    architectures = {instances.architecture(name) for name in config.all_instance_types}
    if len(architectures) > 1:
        yield (
            f"{key}: {', '.join(config.all_instance_types)} are of two architectures, and an image "
            "is of one; name types with x86 processors, or with Graviton"
        )
    for name in config.all_instance_types:
        if config.volume_gb and instances.has_local_disk(name):
            yield (
                f"volume_gb: {name} has a disk of its own, and the service refuses a volume beside "
                "it; leave volume_gb out"
            )
        if instances.has_neuron(name):
            yield (
                f"{key}: {name} has accelerators that need AWS's Neuron or Gaudi libraries, which "
                "the image does not have; take a GPU (g5, g6, p5) or a CPU (c7i, m7i)"
            )


def _serverless(config: Config) -> Iterator[str]:
    settings = config.serverless
    if settings is None:
        return
    excluded = {
        "network": bool(config.network.subnets or config.network.isolated),
        "capture": config.capture is not None,
        "multi_model": config.multi_model,
        "volume_gb": config.volume_gb is not None,
        "ami": config.ami is not None,
        "model.additional": bool(config.model.additional),
        "metrics": bool(config.metrics and config.metrics.are_sagemakers),
    }
    for key, is_set in excluded.items():
        if is_set:
            yield f"{key}: a serverless endpoint has none; leave it out, or name an instance_type"
    provisioned = settings.provisioned_concurrency
    if provisioned and provisioned > settings.max_concurrency:
        yield (
            f"serverless.provisioned_concurrency: {provisioned} is more than "
            f"serverless.max_concurrency, {settings.max_concurrency}; raise that, or lower this"
        )


def _multi_model(config: Config) -> Iterator[str]:
    if not config.multi_model:
        return
    if config.component:
        yield "multi_model and component: choose one of them; SageMaker has no endpoint with both"
    if config.asynchronous:
        yield "multi_model and asynchronous: SageMaker has no endpoint with both"
    if not (config.model.data or "").startswith("s3://"):
        yield "multi_model: needs model.data, the s3:// prefix of the archives"
    elif (config.model.data or "").endswith(".tar.gz"):
        yield f"model.data: {config.model.data} is one archive; multi_model needs their prefix"


def _variables(config: Config) -> Iterator[str]:
    for name, reason in PLATFORM_VARIABLES.items():
        if name in config.env and not (name == "PORT" and config.env[name] == "8080"):
            yield f"env.{name}: {config.env[name]}; {reason}"
    if config.multi_model and "HF_MODEL_ID" in requests.environment(config):
        yield "env.HF_MODEL_ID: a multi-model endpoint loads what requests name; leave model.id out"


def _memory(config: Config, size: ModelSize) -> Iterator[str]:
    if any(config.env.get(name) for name in SMALLER_IN_MEMORY):
        return
    gib = size.weights_bytes / GIB
    if config.serverless:
        limit = config.serverless.memory_mb
        if size.weights_bytes > limit * 2**20:
            yield (
                f"serverless.memory_mb: {limit} MB hold no weights of {gib:.1f} GiB "
                f"({size.source}); take a smaller model, or an instance"
            )
        return
    component_mb = config.component.memory_mb if config.component and not config.has_gpus else None
    if component_mb and size.weights_bytes > component_mb * 2**20:
        yield (
            f"component.memory_mb: {component_mb} MB hold no weights of {gib:.1f} GiB "
            f"({size.source}); raise it to what the container needs"
        )
    for name in config.all_instance_types:
        instance = instances.find(name)
        if instance and size.weights_bytes > instance.model_memory_bytes:
            yield (
                f"instance_type: {instance.shown} holds {instance.model_memory_bytes / GIB:.0f} "
                f"GiB, and the weights have {gib:.1f} GiB ({size.source}); take a larger one, or "
                "set env.QUANTIZE"
            )


def _disk(config: Config, size: ModelSize) -> Iterator[str]:
    is_archive = bool(config.model.data) and not config.model.is_prefix
    needed = size.weights_bytes * (2 if is_archive else 1)  # packed and unpacked
    more = " packed and unpacked" if is_archive else ""
    if config.serverless:
        if needed > SERVERLESS_DISK_BYTES:
            yield (
                f"serverless: its disk has 5 GB, and the model takes {needed / 1e9:.1f} GB{more}; "
                "take a smaller model, or an instance"
            )
        return
    if config.volume_gb and needed > config.volume_gb * GIB:
        yield (
            f"volume_gb: {config.volume_gb} GB hold no model of {needed / 1e9:.1f} GB{more}; set "
            f"{min(512, int(needed / GIB * 1.2) + 1)}"
        )


def _start(config: Config, size: ModelSize) -> Iterator[str]:
    is_on_hub = not config.model.data
    limit = config.start_timeout_s
    download_s = size.weights_bytes / BEST_HUB_BYTES_S if is_on_hub else 0
    start_s = download_s + size.weights_bytes / BEST_LOAD_BYTES_S
    if start_s > limit:
        key = "serverless" if config.serverless else "health_check_timeout_s"
        advice = "put the files on S3 (model.data)" if is_on_hub else "raise it, to 3600 at most"
        yield f"{key}: {limit} s; the start takes {start_s:.0f} s even at the best rates; {advice}"
    transfer_s = size.weights_bytes / BEST_S3_BYTES_S
    if not is_on_hub and not config.serverless and transfer_s > config.download_timeout_s:
        yield (
            f"download_timeout_s: {config.download_timeout_s} s; the files take {transfer_s:.0f} s "
            "even at the best rate; raise it, to 3600 at most"
        )
